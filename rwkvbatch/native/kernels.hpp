// What the arithmetic needs to be told: one plain record for each operation, and the table of functions that one
// instruction set offers. The functions work on a part of the record (a task, or a range of rows); which thread
// does which part never matters to the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed.hpp"

namespace rwkv {

enum class Activation { NONE, TANH, SIGMOID, DECAY, RELU_SQUARED };

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

// Of one row and group of rounded inputs: what its integers are multiplied by, and what every sum of their products begins with.
struct InputGroup {
    float scale;
    int32_t start;
};

// The inputs of a linear layer that are not zero in all of its rows, in ascending order. What the others would add is zero.
// With integer weights: `places` are distances in bytes from the beginning of a band, four for each quad of a group, `block_ends` the
// quads up to the end of each group, and the rows' quads are the layer's `x`.
struct SparseInputs {
    const uint32_t* places;      // of each, its distance from the first in a band, in inputs; with int8, scales count as four
    const uint32_t* block_ends;  // with int8: how many there are to the end of each block that shares a scale
    size_t count;                // behind them the first of the next band, up to MAX_SPARSE_AHEAD
    const float* x;              // their values, rows `x_stride` apart
    size_t x_stride;
};
constexpr size_t MAX_SPARSE_ROWS = 3;
constexpr size_t MAX_SPARSE_AHEAD = 128;

// y = activation(x W^T + bias); out = y, add + y, start + (target - start) * y or, with a target alone, target * y. What is
// null is left out.
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
    SparseInputs sparse;  // `places` is null where all inputs are to be read
    const InputGroup* groups = nullptr;  // of integer weights, whose `x` are rounded rows, see `QuantizeJob`

    size_t num_tasks() const { return ceil_div(weight.num_panels(), panels_per_task); }
    const uint8_t* weights_of(size_t task) const { return weight.at(task * panels_per_task, 0); }
};

// Floats of scratch memory that a thread needs for `linear`.
constexpr size_t LINEAR_ROW_BLOCK = 240, LINEAR_SCRATCH_ROWS = 256;
constexpr size_t LINEAR_MAX_PANELS_PER_TASK = 8;
constexpr size_t LINEAR_SCRATCH = LINEAR_SCRATCH_ROWS * PANEL * LINEAR_MAX_PANELS_PER_TASK;

// Rows rounded for integer weights: `width` inputs, `dtype` that of the weights. See `integer.hpp`; a row of `out` holds its
// integers, `groups` the records of its groups of inputs, [group][row].
struct QuantizeJob {
    ConstRows x;
    size_t num_rows, width;
    Dtype dtype;
    Rows out;
    InputGroup* groups;
};

// Rows that `QuantizeJob` wrote; `stride` counts bytes.
struct QuantizedRows {
    const uint8_t* quads;
    size_t num_rows, in, stride;
};

// Where gathered inputs go, see `SparseInputs`: as many places as a layer has inputs with three more a group and MAX_SPARSE_AHEAD.
struct SparseQuads {
    uint32_t *offsets, *group_ends;
    uint8_t* quads;
    size_t stride;  // bytes from one row to the next
};

constexpr size_t MAX_QUAD_BYTES = 8;
// Floats that a rounded row's integers take.
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
    float* const* states;  // of each sequence after its rows, [H, N, N], keys before values
    const float* const* starting_states;  // before them; may be the same memory
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
    bool temperature_first, top_k_first;
    double least_score;
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
    size_t (*count_nonzero)(ConstRows x, size_t num_rows, size_t width);  // inputs that are not zero in all rows
    void (*layer_norm)(const NormJob&, size_t begin, size_t end);
    void (*embed)(const EmbedJob&, size_t begin, size_t end, float* scratch);
    void (*mix)(const MixJob&, size_t begin, size_t end);
    void (*token_matrix)(const TokenMatrixJob&, size_t begin, size_t end, float* scratch);
    void (*wkv7)(const Wkv7Job&, size_t task);
    void (*activate)(float* values, size_t count, Activation);
    Choice (*sample)(const SampleRow&, float* scratch);
    Choice (*logprob)(const float* logits, size_t vocab_size, int64_t token);  // with the argmax as token
    float (*read)(const float* data, size_t count);                            // adds up: measures bandwidth
    float (*multiply_add)(size_t rounds);  // MULTIPLY_ADDS fused multiply-adds a round: measures the peak
};

// Where no product of integers is wanted, these are not needed; they belong to the same instruction set, or to an extension.
struct IntegerKernels {
    void (*quantize)(const QuantizeJob&, size_t begin, size_t end);
    void (*linear)(const LinearJob&, size_t task, float* scratch, const uint8_t* next);  // of rows from `quantize`
    size_t (*gather)(const QuantizedRows&, bool all, const SparseQuads&);  // returns the number of inputs to be read
};

struct PackingKernels {
    // Write one band of `matrix` to `memory`, which will be its `data`; `rows` are the stored weight from the band's first output
    // on. Into int8 each block of an output's weights w is rounded as scale = max |w| / 127 and round(w / scale), halves to the
    // even integer, at most 127 either way; both divisions are fp32's. W8A8 has the same integers and scales. Into INT4 the
    // scale is the weight of the greatest size, the first of them, / -8, rounded to bf16, and integers are -8 to 7.
    // `rounded_to_int8` and `rounded_to_int4` in model/ops/reference.py are the reference implementations.
    void (*pack_band)(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory);
    // Whether no number is NaN or infinite; for rows without gaps, whether no weight is, and surely not.
    bool (*are_finite)(const uint8_t* numbers, Dtype dtype, size_t count);
    bool (*rows_are_finite)(const StoredMatrix& rows, size_t inputs, size_t count);
};

// What this machine has of the instruction sets that are built for its family (`kernels.cmake`); null where it lacks one.
// Integer and packing kernels are to be asked for only where the kernels of the same set, or of the one that they extend, are
// there.
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
