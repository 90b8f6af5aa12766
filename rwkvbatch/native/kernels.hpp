// What the arithmetic needs to be told: one plain record for each operation, and the table of functions that one
// instruction set offers. The functions work on a part of the record (a task, or a range of rows); which thread
// does which part never matters to the result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace rwkv {

enum class Activation { NONE, TANH, SIGMOID, DECAY, RELU_SQUARED };
enum class Dtype { FP32, BF16, FP16 };

constexpr size_t PANEL = 16;  // columns (outputs) that lie together in a packed matrix

constexpr size_t BAND = 4;    // panels that lie together input by input

constexpr size_t size_of(Dtype dtype) { return dtype == Dtype::FP32 ? 4 : 2; }
constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// A linear layer's weight: panels of 16 outputs in bands of four panels (the last band may have fewer). A band is one
// stretch of memory: for each input in turn the weights of its outputs. bf16 panels hold their columns in the order
// 0, 8, 1, 9, ..., so that widening is a shift and a mask. Missing columns are zero.
struct PackedMatrix {
    const uint8_t* data;
    Dtype dtype;
    size_t out, in;

    size_t num_panels() const { return ceil_div(out, PANEL); }
    size_t panel_bytes() const { return in * input_bytes(1); }
    size_t num_bytes() const { return num_panels() * panel_bytes(); }
    // Bytes of one input's weights in so many panels.
    size_t input_bytes(size_t panels) const { return panels * PANEL * size_of(dtype); }
    size_t band_width(size_t panel) const { return std::min(BAND, num_panels() - panel / BAND * BAND); }
    // Where a panel's weights of one input lie; those of the next are `input_bytes(band_width(panel))` on.
    size_t offset(size_t panel, size_t input) const {
        return panel / BAND * BAND * panel_bytes() + input * input_bytes(band_width(panel)) + input_bytes(panel % BAND);
    }
    const uint8_t* at(size_t panel, size_t input) const { return data + offset(panel, input); }
};

// Rows of floats at a distance; `stride` counts floats.
struct Rows {
    float* data;
    size_t stride;
};

struct ConstRows {
    const float* data;
    size_t stride;
    ConstRows(const float* data_, size_t stride_) : data(data_), stride(stride_) {}
    ConstRows(Rows rows) : data(rows.data), stride(rows.stride) {}
};

// y = activation(x W^T + bias); out = y, add + y or start + (target - start) * y. What is null is left out.
struct LinearJob {
    ConstRows x;
    size_t num_rows;
    PackedMatrix weight;
    const float* bias;
    Activation activation;
    ConstRows add;  // may be `out`
    ConstRows start, target;
    Rows out;
    size_t panels_per_task;

    size_t num_tasks() const { return ceil_div(weight.num_panels(), panels_per_task); }
    const uint8_t* weights_of(size_t task) const { return weight.at(task * panels_per_task, 0); }
};

// Floats of scratch memory that a thread needs for `linear`.
constexpr size_t LINEAR_ROW_BLOCK = 240;
constexpr size_t LINEAR_MAX_PANELS_PER_TASK = 8;
constexpr size_t LINEAR_SCRATCH = LINEAR_ROW_BLOCK * PANEL * LINEAR_MAX_PANELS_PER_TASK;

// out[i] = layer_norm(x[rows ? rows[i] : i])
struct NormJob {
    ConstRows x;
    const int64_t* rows;
    size_t width;
    const float* weight;
    const float* bias;
    float eps;
    Rows out;
};

// out[i] = layer_norm(table[tokens[i]])
struct EmbedJob {
    const uint8_t* table;
    Dtype dtype;
    const int64_t* tokens;
    NormJob norm;
};

// out[m][i] = x[i] + (previous[i] - x[i]) * factors[m]; `carried[i]` is the row before, where it is not x[i - 1].
constexpr size_t MAX_MIXES = 6;
struct MixJob {
    ConstRows x;
    const float* const* carried;
    size_t width;
    size_t num_mixes;
    const float* factors;
    Rows out[MAX_MIXES];
};

// One layer's recurrence. A task is some heads of one sequence, taken in `order`.
struct Wkv7Job {
    ConstRows r, w, k, v, a, g;
    const float *k_k, *k_a, *r_k, *norm_weight, *norm_bias;
    size_t num_heads, head_size, heads_per_task;
    const int64_t* starts;
    const int64_t* order;
    float* const* states;  // of each sequence, [H, N, N], keys before values
    Rows out;
};

constexpr size_t MAX_HEAD_SIZE = 256;

// What is made of one row of logits; see `SampleBatch` in base.py. `given` is a token to look up, or -1 where one is to be
// sampled by all that stands before it.
struct SampleRow {
    const float* logits;
    size_t vocab_size;
    float temperature, top_p;
    int64_t top_k;
    bool temperature_first;
    const int64_t* penalty_ids;
    const float* penalty_values;
    size_t num_penalties;
    uint64_t noise_key;
    uint32_t turn, step;
    int64_t given;
};

struct Choice {
    int64_t token;
    float logprob;
};

// Floats of scratch memory that a thread needs to sample from `vocab_size` logits.
constexpr size_t sample_scratch(size_t vocab_size) { return 9 * (ceil_div(vocab_size, 64) * 64 + 64); }

constexpr size_t MULTIPLY_ADDS = 12 * PANEL;

struct Kernels {
    const char* name;
    void (*linear)(const LinearJob&, size_t task, float* scratch, const uint8_t* next);  // weights to read after these
    void (*layer_norm)(const NormJob&, size_t begin, size_t end);
    void (*embed)(const EmbedJob&, size_t begin, size_t end, float* scratch);
    void (*mix)(const MixJob&, size_t begin, size_t end);
    void (*wkv7)(const Wkv7Job&, size_t task);
    void (*activate)(float* values, size_t count, Activation);
    Choice (*sample)(const SampleRow&, float* scratch);
    Choice (*logprob)(const float* logits, size_t vocab_size, int64_t token);  // with the argmax as token
    float (*read)(const float* data, size_t count);                            // adds up: measures bandwidth
    float (*multiply_add)(size_t rounds);  // MULTIPLY_ADDS fused multiply-adds a round: measures the peak
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where they were not built
const Kernels* avx512_kernels();

}  // namespace rwkv
