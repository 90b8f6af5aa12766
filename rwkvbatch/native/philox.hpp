// Philox 4x32-10 for sixteen counters at once. The reference implementation, with the source, is in model/ops/choosing.py.
#pragma once

#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

struct NoiseKey {
    uint64_t key;
    uint32_t turn, step;
};

// words[w] receives the w-th words of the blocks with the numbers `blocks`.
RWKV_INLINE void philox(const NoiseKey& noise, I16 blocks, I16 words[4]) {
    const I16 first = set1(0xD2511F53u), second = set1(0xCD9E8D57u);
    uint32_t low_key = static_cast<uint32_t>(noise.key), high_key = static_cast<uint32_t>(noise.key >> 32);
    I16 c0 = blocks, c1 = set1(noise.step), c2 = set1(noise.turn), c3 = set1(uint32_t(0));
    for (int round = 0; round < 10; ++round) {
        I16 high0, low0, high1, low1;
        multiply_wide(c0, first, high0, low0);
        multiply_wide(c2, second, high1, low1);
        c0 = high1 ^ c1 ^ set1(low_key);
        c1 = low1;
        c2 = high0 ^ c3 ^ set1(high_key);
        c3 = low0;
        low_key += 0x9E3779B9u;
        high_key += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

}  // namespace RWKV_ISA
}  // namespace rwkv
