// Memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace rwkv {

// Request huge pages for memory, from the first page boundary in it on; the last page may extend beyond its end. The content does
// not change.
void use_huge_pages(void* data, size_t num_bytes);

// Memory for weights, allocated consecutively from large blocks on huge pages, and freed together.
class WeightStore {
public:
    WeightStore() = default;
    ~WeightStore();
    WeightStore(const WeightStore&) = delete;
    WeightStore& operator=(const WeightStore&) = delete;

    uint8_t* allocate(size_t num_bytes);
    size_t num_bytes() const { return num_bytes_; }

private:
    struct Block { uint8_t* data; size_t size, used; };
    std::vector<Block> blocks_;
    size_t num_bytes_ = 0;
};

// Buffers for activations. Released buffers are reused by later operations.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // At least `count` uninitialised floats, 64-byte aligned. With the guard on they are NaN, between two bands of a known value.
    float* acquire(size_t count, size_t& capacity);
    void release(float* data, size_t capacity);

    void set_guard(bool guard) { guard_ = guard; }
    // Number of overwritten bands of the buffers that were released since the last call.
    size_t take_damage() { const size_t damage = damage_; damage_ = 0; return damage; }

private:
    std::map<size_t, std::vector<float*>> free_;
    bool guard_ = false;
    size_t damage_ = 0;
};

}  // namespace rwkv
