// The interface of `quads.hpp` with NEON: `usdot` and `usmmla` (RWKV_MATRIX), `sdot` (RWKV_DOT), or widening products.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "kernels.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

constexpr size_t WORD = 4;
template <Dtype D> constexpr size_t NUM_PARTS = D == Dtype::INT4 ? 2 : 1;

template <Dtype> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const uint16x8_t first = vcombine_u16(vmovn_u32(integers.a), vmovn_u32(integers.b));
    const uint16x8_t second = vcombine_u16(vmovn_u32(integers.c), vmovn_u32(integers.d));
    vst1q_u8(to, vcombine_u8(vmovn_u16(first), vmovn_u16(second)));
}

#if defined(RWKV_MATRIX)
// Unsigned weights times signed inputs.
constexpr int weight_excess(Dtype dtype) { return zero_weight(dtype); }
constexpr uint32_t FLIPPED_BITS = 0;
#else
// Both signed: flipping the top bit removes the excess of W8A8 weights; INT4 weights are small enough to keep it.
constexpr int weight_excess(Dtype dtype) { return dtype == Dtype::W8A8 ? 0 : zero_weight(dtype); }
constexpr uint32_t FLIPPED_BITS = 0x80808080u;
#endif

template <size_t PART> RWKV_INLINE uint8x16_t nibbles(uint8x16_t bytes) {
    if constexpr (PART == 0) return vandq_u8(bytes, vdupq_n_u8(0x0f));
    else return vshrq_n_u8(bytes, 4);
}
template <Dtype D, size_t PART> RWKV_INLINE I16 part_of(I16 bytes) {
    if constexpr (D != Dtype::INT4) return bytes ^ set1(FLIPPED_BITS);
    const auto four = [](uint32x4_t p) { return vreinterpretq_u32_u8(nibbles<PART>(vreinterpretq_u8_u32(p))); };
    return each<I16>(four, bytes);
}

#if defined(RWKV_DOT) || defined(RWKV_MATRIX)

struct QuadInputs { int8x8_t bytes; };  // in the first lane

template <Dtype> RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return {vcreate_s8(word)};
}
// Assembly, since GCC 12 copies the sums of a tile around the intrinsics.
RWKV_INLINE uint32x4_t add_products(uint32x4_t sum, uint32x4_t w, QuadInputs x) {
#if defined(RWKV_MATRIX)
    __asm__("usdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(w), "w"(x.bytes));
#else
    __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(w), "w"(x.bytes));
#endif
    return sum;
}

#else

struct QuadInputs { int8x16_t bytes; };

template <Dtype> RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return {vreinterpretq_s8_u32(vdupq_n_u32(word))};
}
// The products of two inputs fit into 16 bits: 2 x 127 x 127.
RWKV_INLINE uint32x4_t add_products(uint32x4_t sum, uint32x4_t w, QuadInputs x) {
    const int8x16_t weights = vreinterpretq_s8_u32(w);
    const int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(x.bytes)), high = vmull_high_s8(weights, x.bytes);
    return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), vpaddq_s16(low, high)));
}

#endif

template <Dtype> RWKV_INLINE void add_products(I16& sum, I16 w, QuadInputs x) {
    const auto add = [&](uint32x4_t p, uint32x4_t q) __attribute__((always_inline)) { return add_products(p, q, x); };
    sum = each<I16>(add, sum, w);
}

#if defined(RWKV_MATRIX)

// Eight inputs of two rows, eight weights of four outputs, and the sums of their products, for each output with both rows.
struct RowPair { int8x16_t bytes; };
struct OutputPairs { uint8x16_t first, second; };
struct MatrixSums { int32x4_t v[8]; };

RWKV_INLINE MatrixSums start_sums(int32_t first, int32_t second) {
    const int32x4_t both = vzip1q_s32(vdupq_n_s32(first), vdupq_n_s32(second));
    return {{both, both, both, both, both, both, both, both}};
}
RWKV_INLINE RowPair load_pair(const uint8_t* first, const uint8_t* second) {
    return {vreinterpretq_s8_u8(vcombine_u8(vld1_u8(first), vld1_u8(second)))};
}
// Load two quads of weights of four outputs. Those of W8A8 are in two units, of which `second` is the other one.
template <Dtype D> RWKV_INLINE OutputPairs load_outputs(const uint8_t* unit, const uint8_t* second) {
    const uint8x16_t bytes = vld1q_u8(unit);
    const uint8x16_t low = D == Dtype::INT4 ? nibbles<0>(bytes) : bytes;
    const uint8x16_t high = D == Dtype::INT4 ? nibbles<1>(bytes) : vld1q_u8(second);
    const uint32x4_t a = vreinterpretq_u32_u8(low), b = vreinterpretq_u32_u8(high);
    return {vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))};
}
// Add to the sums of outputs 4 `four` to 4 `four` + 3.
RWKV_INLINE void add_products(MatrixSums& sums, size_t four, const OutputPairs& outputs, RowPair rows) {
    sums.v[2 * four] = vusmmlaq_s32(sums.v[2 * four], outputs.first, rows.bytes);
    sums.v[2 * four + 1] = vusmmlaq_s32(sums.v[2 * four + 1], outputs.second, rows.bytes);
}
RWKV_INLINE I16 sums_of_row(const MatrixSums& sums, size_t second) {
    const auto four = [&](size_t i) {
        const int32x4_t a = sums.v[2 * i], b = sums.v[2 * i + 1];
        return vreinterpretq_u32_s32(second != 0 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b));
    };
    return {four(0), four(1), four(2), four(3)};
}

#endif

}  // namespace RWKV_ISA
}  // namespace rwkv
