#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>

namespace rwkv {
namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;
constexpr size_t BLOCK = size_t(32) << 20;
constexpr size_t ALIGNMENT = 64;
constexpr size_t GUARD = 16;  // floats on each side of a buffer
constexpr float GUARD_VALUE = -1.2345678e33f;

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

void use_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t num_bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(data), HUGE_PAGE);
    const uintptr_t end = round_up(reinterpret_cast<uintptr_t>(data) + num_bytes, HUGE_PAGE);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

uint8_t* WeightStore::allocate(size_t num_bytes) {
    num_bytes = round_up(std::max(num_bytes, ALIGNMENT), ALIGNMENT);
    num_bytes_ += num_bytes;
    if (blocks_.empty() || blocks_.back().size - blocks_.back().used < num_bytes) {
        // The unused end of a block is never touched, so it takes address space but no memory.
        const size_t size = round_up(std::max(num_bytes, BLOCK), HUGE_PAGE);
        void* data = nullptr;
        if (posix_memalign(&data, HUGE_PAGE, size) != 0) throw std::bad_alloc();
        use_huge_pages(data, size);
        blocks_.push_back({static_cast<uint8_t*>(data), size, 0});
    }
    Block& block = blocks_.back();
    uint8_t* result = block.data + block.used;
    block.used += num_bytes;
    return result;
}

WeightStore::~WeightStore() {
    for (const Block& block : blocks_) std::free(block.data);
}

float* Arena::acquire(size_t count, size_t& capacity) {
    // Capacities are powers of two, so that buffers are reused. Memory beyond `count` is never touched.
    capacity = 256;
    while (capacity < count) capacity *= 2;
    float* data;
    std::vector<float*>& unused = free_[capacity];
    if (!unused.empty()) {
        data = unused.back();
        unused.pop_back();
    } else {
        void* memory = nullptr;
        if (posix_memalign(&memory, ALIGNMENT, (capacity + 2 * GUARD) * sizeof(float)) != 0) throw std::bad_alloc();
        data = static_cast<float*>(memory) + GUARD;
        std::fill_n(data - GUARD, GUARD, GUARD_VALUE);
        std::fill_n(data + capacity, GUARD, GUARD_VALUE);
    }
    if (guard_) std::fill_n(data, capacity, std::numeric_limits<float>::quiet_NaN());
    return data;
}

void Arena::release(float* data, size_t capacity) {
    if (guard_) {
        const auto is_damaged = [](float value) { return value != GUARD_VALUE; };
        damage_ += std::any_of(data - GUARD, data, is_damaged);
        damage_ += std::any_of(data + capacity, data + capacity + GUARD, is_damaged);
    }
    free_[capacity].push_back(data);
}

Arena::~Arena() {
    for (auto& [capacity, buffers] : free_)
        for (float* data : buffers) std::free(data - GUARD);
}

}  // namespace rwkv
