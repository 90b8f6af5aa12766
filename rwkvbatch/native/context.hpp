// `Context`: the CPU backend, with its threads, instruction set and memory. Each operation is a job that the threads share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace rwkv {

bool is_intel();

// A packed weight of a linear layer; keeps the store alive that holds its memory.
struct Matrix {
    PackedMatrix packed;
    std::shared_ptr<WeightStore> store;
};

// A small weight in fp32, [rows, width].
struct Vector {
    const float* data;
    size_t rows, width;
    std::shared_ptr<WeightStore> store;
};

// A linear layer: y = activation(x W^T + bias); `bias` may be null.
struct LinearLayer {
    Matrix weight;
    const float* bias;
    Activation activation;
};

// An embedding table, in the format of the checkpoint.
struct Table {
    const uint8_t* data;
    Dtype dtype;
    size_t vocab_size, width;
    std::shared_ptr<WeightStore> store;
};

// The location of a matrix in an open file; rows have no gaps.
struct StoredRows {
    int descriptor;
    uint64_t start;
    Dtype dtype;
};

// Activations [rows, width], fp32.
class Array {
public:
    Array(std::shared_ptr<Arena> arena, size_t rows, size_t width);
    ~Array();
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    Rows view() const { return {data, stride}; }

    const size_t rows, width;
    // At least a cache line more than the width, so that rows do not all map to the same sets of the cache.
    const size_t stride;
    float* data;
    bool mostly_zero = false;  // the result of relu squared: skipping the weights of zeros may be faster

private:
    std::shared_ptr<Arena> arena_;
    size_t capacity_;
};

using ArrayPtr = std::unique_ptr<Array>;

// The memory of a pool: shifts [capacity, L, 2, C], wkv [capacity, L, H, N, N] with keys before values.
struct PoolView {
    float* shifts;
    float* wkv;
    size_t capacity, num_layers, num_heads, head_size;

    size_t width() const { return num_heads * head_size; }
    float* shift(size_t slot, size_t layer, size_t kind) const {
        return shifts + ((slot * num_layers + layer) * 2 + kind) * width();
    }
    float* head_states(size_t slot, size_t layer) const {
        return wkv + (slot * num_layers + layer) * width() * head_size;
    }
};

// A checked ragged batch.
struct Step {
    Step(std::vector<int64_t> tokens, std::vector<int64_t> starts, std::vector<int64_t> slots,
         std::vector<int64_t> outputs, const PoolView& pool);

    std::vector<int64_t> tokens, starts, slots, outputs;
    std::vector<int64_t> longest_first;  // sequences by length, so that a long one does not start last
    PoolView pool;
    // Set by each operation that needs them: for each row, the row before it if the state holds that; for each sequence, its
    // state after and before the step.
    std::vector<const float*> carried;
    std::vector<float*> states;
    std::vector<const float*> starting_states;
    // The matrices before the step, [sequences, L, H, N, N]; null if the pool's slots hold them.
    const float* start_wkv = nullptr;
};

struct LayerVectors {
    Vector k_k, k_a, r_k, norm_weight, norm_bias;
};

// An application of a linear layer: its result is y, add + y, start + (target - start) * y or, with only a target, target * y.
struct Product {
    const Array* x;
    const LinearLayer* layer;
    const Array *add, *start, *target;  // or null
};

// The kernels of an instruction set, by its name.
struct InstructionSet {
    const char* name;
    const Kernels* kernels;
    const IntegerKernels* integer_kernels;
    const PackingKernels* packing_kernels;
};

class Context {
public:
    // `isa`: "auto" or the name of an instruction set. Throws std::invalid_argument if it is not available.
    Context(size_t num_threads, const std::string& isa);

    const char* isa() const { return isa_.name; }
    const Kernels& kernels() const { return *kernels_; }
    size_t num_threads() const { return threads_->size(); }
    ThreadPool& threads();
    Arena& arena() { return *arena_; }
    size_t weight_bytes() const { return store_->num_bytes(); }
    // Bytes of weights that all steps so far skipped because their inputs were zero.
    size_t skipped_bytes() const { return skipped_bytes_; }
    // For tests and measurements: `false` makes all steps read all weights.
    void set_sparse(bool sparse) { sparse_ = sparse; }
    // Whether weights for up to three rows are prefetched by instructions. Processors of Intel read them up to 1.6 times as fast
    // then, others more slowly, so it is on for Intel's. Results are the same.
    void set_prefetch(bool prefetch) { prefetch_ = prefetch; }

    // `dtype` is the type of the packed weight: the stored type, or one to which it is rounded, see `PackingKernels`.
    // `sparse_inputs`: the inputs are mostly zero, so W8A8 weights are stored by input if their shape allows it.
    LinearLayer linear_layer(const StoredMatrix& stored, size_t out, size_t in, const float* bias, Activation activation,
                             Dtype dtype, bool sparse_inputs);
    Vector vector(const float* data, size_t rows, size_t width);
    Table table(const uint8_t* data, Dtype dtype, size_t vocab_size, size_t width);
    // The same from a file. Each thread reads one part at a time, so that only the result is in memory as a whole. Returns nullopt
    // if the file cannot be read, is truncated, or contains NaN or infinity.
    std::optional<LinearLayer> read_layer(const StoredRows& stored, size_t out, size_t in, Activation activation, Dtype dtype,
                                          bool sparse_inputs);
    std::optional<Table> read_table(const StoredRows& stored, size_t vocab_size, size_t width);
    ArrayPtr array(size_t rows, size_t width);

    // Begin a step, whose jobs are expected to be similar to those of the step before.
    void begin();
    ArrayPtr embed(const Step& step, const Table& table, const Vector& weight, const Vector& bias);
    std::vector<ArrayPtr> shift_mix(Step& step, size_t kind, size_t layer, const Array& x, const Vector& weight,
                                    const Vector& bias, const Vector& mix);
    std::vector<ArrayPtr> linears(const std::vector<Product>& products);
    // x E for each row, with E = table[token] + offset as a square matrix.
    ArrayPtr token_matrix(const Step& step, const Table& table, const Array& offset, const Array& x);
    ArrayPtr wkv7(Step& step, size_t layer, const Array& r, const Array& w, const Array& k, const Array& v,
                  const Array& a, const Array& g, const LayerVectors& vectors);
    // Write the logits of the step's output rows to `logits`, [outputs, vocabulary] without gaps.
    void head(const Step& step, const Array& x, const Vector& weight, const Vector& bias, const LinearLayer& head,
              float* logits);

    void choose(const SampleRow* rows, size_t count, Choice* choices);

    // Locked by calls that run without Python's global lock: scratch memory and the pool's jobs belong to one call.
    std::mutex& one_call() { return one_call_; }

private:
    float* scratch(size_t thread) { return scratch_[thread].get(); }
    void need_scratch(size_t count);
    void check_tokens(const Step& step, const Table& table) const;
    void run_linears(std::vector<LinearJob>& jobs);
    // Round the inputs of jobs with integer weights. The returned arrays hold the rounded inputs.
    std::vector<ArrayPtr> quantize_inputs(std::vector<LinearJob>& jobs);
    // Make `job` read only the weights of nonzero inputs, if that is faster.
    void skip_zeros(LinearJob& job);
    // The same for few rounded rows and weights stored by input, for which it is always faster. The returned array holds the rows.
    ArrayPtr gather_inputs(LinearJob& job);
    // Record what each thread reads first in the step's next job. Announce to it what it read first in the job after that, in the
    // step before.
    template <class FirstRead> void note_job(const FirstRead& first_read);
    // Call work(begin, end, thread) on parts of `rows` rows, each of which processes about `floats_per_row` floats.
    template <class Work> void run_rows(size_t rows, size_t floats_per_row, const Work& work);

    const InstructionSet isa_;
    const Kernels* kernels_;
    std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();
    std::shared_ptr<WeightStore> store_ = std::make_shared<WeightStore>();
    std::vector<std::unique_ptr<float[]>> scratch_;
    size_t scratch_size_ = 0;
    std::vector<std::vector<Range>> first_reads_;  // by job of a step and by thread
    size_t next_job_ = 0;
    std::vector<uint32_t> offsets_, block_ends_;  // of nonzero inputs, see `SparseInputs`
    std::vector<float> nonzero_x_;
    size_t skipped_bytes_ = 0;
    bool sparse_ = true;
    bool prefetch_ = is_intel();
    std::mutex one_call_;
    std::unique_ptr<ThreadPool> threads_;
};

}  // namespace rwkv
