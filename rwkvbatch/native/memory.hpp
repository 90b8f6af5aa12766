// Memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace rwkv {

// Ask for huge pages for some memory, from the first one that begins in it; the last one may reach beyond its end. Does
// nothing to what is there.
void use_huge_pages(void* data, size_t num_bytes);

// Weights: handed out one after the other from large blocks on huge pages, and freed all together.
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

// Activations: buffers that come back and are used again by the next operation that needs one of that size.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // At least `count` floats, 64-byte aligned, undefined; with `guard` on, NaN, and between bands of a known value.
    float* acquire(size_t count, size_t& capacity);
    void release(float* data, size_t capacity);

    void set_guard(bool guard) { guard_ = guard; }
    // How many bands were written to, of the buffers that came back since the last call.
    size_t take_damage() { const size_t damage = damage_; damage_ = 0; return damage; }

private:
    std::map<size_t, std::vector<float*>> free_;
    bool guard_ = false;
    size_t damage_ = 0;
};

}  // namespace rwkv
