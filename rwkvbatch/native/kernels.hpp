// The interface of the kernels: one plain record of arguments for each operation, and the table of functions of one instruction
// set. The functions compute a part of the record (a task, or a range of rows). The result does not depend on which thread computes
// which part.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed.hpp"

namespace rwkv {

enum class Activation { NONE, TANH, SIGMOID, DECAY, RELU_SQUARED };

// Rows of floats; `stride` is the distance between rows, in floats.
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

// For one row of rounded inputs and one group of weights: the scale of the row's integers, and the initial value of every sum of
// their products.
struct InputGroup {
    float scale;
    int32_t start;
};

// The inputs of a linear layer that are nonzero in at least one row, in ascending order. The other inputs add zero.
// With integer weights, `offsets` are distances in bytes from the beginning of a band, four for each quad of a group, `block_ends`
// counts the quads up to the end of each group, and the quads of the rows are the layer's `x`.
struct SparseInputs {
    const uint32_t* offsets;     // distance of each input from the first one of a band, in inputs; with int8, scales count as four
    const uint32_t* block_ends;  // with int8: number of inputs up to the end of each block that shares a scale
    size_t count;                // number of inputs; up to MAX_SPARSE_AHEAD offsets of the next band follow
    const float* x;              // the values of the inputs; rows are `x_stride` apart
    size_t x_stride;
};
constexpr size_t MAX_SPARSE_ROWS = 3;
constexpr size_t MAX_SPARSE_AHEAD = 128;

// y = activation(x W^T + bias); out = y, add + y, start + (target - start) * y or, with only a target, target * y. Unused pointers
// are null.
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
    SparseInputs sparse;  // `offsets` is null if all inputs are to be read
    bool prefetch = false;  // whether weights for up to three rows are prefetched by instructions, see `Context::set_prefetch`
    const InputGroup* groups = nullptr;  // with integer weights; `x` are then rounded rows, see `QuantizeJob`

    size_t num_tasks() const { return ceil_div(weight.num_panels(), panels_per_task); }
    const uint8_t* weights_of(size_t task) const { return weight.at(task * panels_per_task, 0); }
};

// Floats of scratch memory that a thread needs for `linear`.
constexpr size_t LINEAR_ROW_BLOCK = 240, LINEAR_SCRATCH_ROWS = 256;
constexpr size_t LINEAR_MAX_PANELS_PER_TASK = 8;
constexpr size_t LINEAR_SCRATCH = LINEAR_SCRATCH_ROWS * PANEL * LINEAR_MAX_PANELS_PER_TASK;

// Rounding of rows of `width` inputs for integer weights of type `dtype`, see `integer.hpp`. A row of `out` receives its integers,
// `groups` the records of the groups of weights, [group][row].
struct QuantizeJob {
    ConstRows x;
    size_t num_rows, width;
    Dtype dtype;
    Rows out;
    InputGroup* groups;
};

// Rows written by a `QuantizeJob`; `stride` is in bytes.
struct QuantizedRows {
    const uint8_t* quads;
    size_t num_rows, in, stride;
};

// Memory for gathered inputs, see `SparseInputs`: room for the layer's inputs, three more per group, and MAX_SPARSE_AHEAD.
struct SparseQuads {
    uint32_t *offsets, *group_ends;
    uint8_t* quads;
    size_t stride;  // bytes from one row to the next
};

constexpr size_t MAX_QUAD_BYTES = 8;
// Size of a rounded row's integers, in floats.
constexpr size_t quantized_floats(size_t in) { return ceil_div(in, PANEL) * PANEL / QUAD * MAX_QUAD_BYTES / sizeof(float); }

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

// RWKV-7a's DeepEmbed: out[i] = x[i] E, with E = table[tokens[i]] + offset[i] as a matrix [size, size].
struct TokenMatrixJob {
    const uint8_t* table;
    Dtype dtype;
    const int64_t* tokens;
    ConstRows offset, x;
    size_t size;
    Rows out;
};

constexpr size_t MAX_TOKEN_MATRIX = 256;

// out[m][i] = x[i] + (previous[i] - x[i]) * factors[m]; `carried[i]` is the previous row if it is not x[i - 1], else null.
constexpr size_t MAX_MIXES = 6;
struct MixJob {
    ConstRows x;
    const float* const* carried;
    size_t width;
    size_t num_mixes;
    const float* factors;
    Rows out[MAX_MIXES];
};

// One layer's recurrence. A task is some heads of one sequence; sequences are processed in `order`.
struct Wkv7Job {
    ConstRows r, w, k, v, a, g;
    const float *k_k, *k_a, *r_k, *norm_weight, *norm_bias;
    size_t num_heads, head_size, heads_per_task;
    const int64_t* starts;
    const int64_t* order;
    float* const* states;  // state of each sequence after its rows, [H, N, N], keys before values
    const float* const* starting_states;  // state before its rows; may be the same memory
    Rows out;
};

constexpr size_t MAX_HEAD_SIZE = 256;

// The choice to make from one row of logits, see `SampleBatch` in base.py. `target` is the token to look up; -1 samples a token
// with the other fields.
struct SampleRow {
    const float* logits;
    size_t vocab_size;
    float temperature, top_p;
    int64_t top_k;
    bool temperature_first, top_k_first;
    double min_p_cutoff;
    const int64_t* penalty_ids;
    const float* penalty_values;
    size_t num_penalties;
    uint64_t noise_key;
    uint32_t turn, step;
    int64_t target;
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
    void (*linear)(const LinearJob&, size_t task, float* scratch, const uint8_t* next);  // `next`: weights to prefetch
    size_t (*count_nonzero)(ConstRows x, size_t num_rows, size_t width);  // inputs that are nonzero in any row
    void (*layer_norm)(const NormJob&, size_t begin, size_t end);
    void (*embed)(const EmbedJob&, size_t begin, size_t end, float* scratch);
    void (*mix)(const MixJob&, size_t begin, size_t end);
    void (*token_matrix)(const TokenMatrixJob&, size_t begin, size_t end, float* scratch);
    void (*wkv7)(const Wkv7Job&, size_t task);
    void (*activate)(float* values, size_t count, Activation);
    Choice (*sample)(const SampleRow&, float* scratch);
    Choice (*logprob)(const float* logits, size_t vocab_size, int64_t token);  // `token` of the result is the argmax
    float (*read)(const float* data, size_t count);                            // sums up; measures bandwidth
    float (*multiply_add)(size_t rounds);  // MULTIPLY_ADDS fused multiply-adds per round; measures the peak
};

// Kernels for integer products, of the same instruction set or an extension of it.
struct IntegerKernels {
    void (*quantize)(const QuantizeJob&, size_t begin, size_t end);
    void (*linear)(const LinearJob&, size_t task, float* scratch, const uint8_t* next);  // rows are from `quantize`
    size_t (*gather)(const QuantizedRows&, const SparseQuads&);  // see `gather` in by_input.hpp
};

struct PackingKernels {
    // Write one band of `matrix` to `memory`, which will be its `data`. `rows` is the stored weight from the band's first output
    // on. INT8: for each block of an output's weights w, scale = max |w| / 127 and integers round(w / scale), halves to even,
    // clamped to +-127; both divisions are fp32. W8A8: the same integers and scales. INT4: scale = the weight of the largest
    // magnitude (the first among equals) / -8, rounded to bf16; integers are -8 to 7.
    // `rounded_to_int8` and `rounded_to_int4` in model/ops/reference.py are the reference implementations.
    void (*pack_band)(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory);
    // Whether all numbers are finite, and whether all weights of rows without gaps certainly are.
    bool (*are_finite)(const uint8_t* numbers, Dtype dtype, size_t count);
    bool (*rows_are_finite)(const StoredMatrix& rows, size_t inputs, size_t count);
};

// The kernels of the instruction sets in this build (`kernels.cmake`); null if this machine lacks the instruction set. Request
// integer and packing kernels only if the kernels of the same set, or of the set that they extend, are not null.
const Kernels* portable_kernels();
const PackingKernels* portable_packing_kernels();
const IntegerKernels* portable_integer_kernels();
#if defined(RWKV_X86)
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const PackingKernels* avx2_packing_kernels();
const PackingKernels* avx512_packing_kernels();
const IntegerKernels* avx2_integer_kernels();
const IntegerKernels* avx512_integer_kernels();
const IntegerKernels* avxvnni_integer_kernels();
const IntegerKernels* avx512vnni_integer_kernels();
const IntegerKernels* avx512amx_integer_kernels();
#elif defined(RWKV_ARM64)
const Kernels* neon_kernels();
const PackingKernels* neon_packing_kernels();
const IntegerKernels* neon_integer_kernels();
const IntegerKernels* neondot_integer_kernels();
const IntegerKernels* neoni8mm_integer_kernels();
#endif

}  // namespace rwkv
