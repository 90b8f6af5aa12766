// One CPU backend: its threads, instruction set and memory, and each operation as a job shared among the threads.
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

// A packed linear layer. Lives as long as the store that it lies in.
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

// A linear layer: y = activation(x W^T + bias), the bias null where there is none.
struct LinearLayer {
    Matrix weight;
    const float* bias;
    Activation activation;
};

// An embedding table as it is in the checkpoint.
struct Table {
    const uint8_t* data;
    Dtype dtype;
    size_t vocab_size, width;
    std::shared_ptr<WeightStore> store;
};

// Where the rows of a matrix lie in an open file, without gaps.
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
    // A cache line more than the width, so that rows do not all fall into the same sets of the cache.
    const size_t stride;
    float* data;
    bool mostly_zero = false;  // as a layer with relu squared makes them: reading weights only for what is not zero may pay

private:
    std::shared_ptr<Arena> arena_;
    size_t capacity_;
};

using ArrayPtr = std::unique_ptr<Array>;

// Where the states of a pool lie: shifts [capacity, L, 2, C], wkv [capacity, L, H, N, N] with keys before values.
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

// A ragged batch, checked.
struct Step {
    Step(std::vector<int64_t> tokens, std::vector<int64_t> starts, std::vector<int64_t> slots,
         std::vector<int64_t> outputs, const PoolView& pool);

    std::vector<int64_t> tokens, starts, slots, outputs;
    std::vector<int64_t> longest_first;  // sequences, so that a long one is not begun last
    PoolView pool;
    // Filled anew by each operation that needs them: of each row the row before it where it is carried, of each
    // sequence its state.
    std::vector<const float*> carried;
    std::vector<float*> states;
    std::vector<const float*> starting_states;
    // The matrices of the sequences before the step, [sequences, L, H, N, N], where they are not in the pool's slots; else null.
    const float* start_wkv = nullptr;
};

struct LayerVectors {
    Vector k_k, k_a, r_k, norm_weight, norm_bias;
};

// A linear layer at work: its result is y, add + y, start + (target - start) * y or, with a target alone, target * y.
struct Product {
    const Array* x;
    const LinearLayer* layer;
    const Array *add, *start, *target;  // or null
};

// The kernels that serve under a name.
struct InstructionSet {
    const char* name;
    const Kernels* kernels;
    const IntegerKernels* integer_kernels;
    const PackingKernels* packing_kernels;
};

class Context {
public:
    // `isa`: "auto" or the name of an instruction set. Throws std::invalid_argument where it is not to be had.
    Context(size_t num_threads, const std::string& isa);

    const char* isa() const { return isa_.name; }
    const Kernels& kernels() const { return *kernels_; }
    size_t num_threads() const { return threads_->size(); }
    ThreadPool& threads();
    Arena& arena() { return *arena_; }
    size_t weight_bytes() const { return store_->num_bytes(); }
    // Weights that all steps so far did not read, as their inputs were zero.
    size_t skipped_bytes() const { return skipped_bytes_; }
    // For tests and measurements: read all weights, whatever the inputs are.
    void set_sparse(bool sparse) { sparse_ = sparse; }

    // `dtype` is that of the packed weight: the stored one, or one that it is rounded to, see `PackingKernels`.
    // `sparse_inputs`: the inputs are mostly zero, so W8A8 weights lie by input where their shape allows it.
    LinearLayer linear_layer(const StoredMatrix& stored, size_t out, size_t in, const float* bias, Activation activation,
                             Dtype dtype, bool sparse_inputs);
    Vector vector(const float* data, size_t rows, size_t width);
    Table table(const uint8_t* data, Dtype dtype, size_t vocab_size, size_t width);
    // The same from a file, a part at a time by each thread, so that nothing but the result is in memory. Nothing where the file
    // cannot be read, is cut off, or holds NaN or infinity.
    std::optional<LinearLayer> read_layer(const StoredRows& stored, size_t out, size_t in, Activation activation, Dtype dtype,
                                          bool sparse_inputs);
    std::optional<Table> read_table(const StoredRows& stored, size_t vocab_size, size_t width);
    ArrayPtr array(size_t rows, size_t width);

    // A step begins: its jobs will be those of the step before, more or less.
    void begin();
    ArrayPtr embed(const Step& step, const Table& table, const Vector& weight, const Vector& bias);
    std::vector<ArrayPtr> shift_mix(Step& step, size_t kind, size_t layer, const Array& x, const Vector& weight,
                                    const Vector& bias, const Vector& mix);
    std::vector<ArrayPtr> linears(const std::vector<Product>& products);
    // x E per row, with E = table[token] + offset as a square matrix.
    ArrayPtr token_matrix(const Step& step, const Table& table, const Array& offset, const Array& x);
    ArrayPtr wkv7(Step& step, size_t layer, const Array& r, const Array& w, const Array& k, const Array& v,
                  const Array& a, const Array& g, const LayerVectors& vectors);
    // Logits of the step's output rows into `logits`, [outputs, vocabulary] without gaps.
    void head(const Step& step, const Array& x, const Vector& weight, const Vector& bias, const LinearLayer& head,
              float* logits);

    void choose(const SampleRow* rows, size_t count, Choice* choices);

    // Held by a call that runs beside other Python threads: scratch memory and the pool's jobs are those of one call.
    std::mutex& one_call() { return one_call_; }

private:
    float* scratch(size_t thread) { return scratch_[thread].get(); }
    void need_scratch(size_t count);
    void check_tokens(const Step& step, const Table& table) const;
    void run_linears(std::vector<LinearJob>& jobs);
    // Round the inputs of jobs with integer weights; what is returned holds them.
    std::vector<ArrayPtr> quantize_inputs(std::vector<LinearJob>& jobs);
    // Have `job` read only the weights whose inputs are not zero, where that pays.
    void skip_zeros(LinearJob& job);
    // The same for a job of few rounded rows with weights that lie by input, where it always pays; what is returned holds the rows.
    ArrayPtr gather_inputs(LinearJob& job);
    // Note what each thread reads first in the step's next job, and have it expect what it read first in the job after
    // that in the step before.
    template <class FirstRead> void note_job(const FirstRead& first_read);
    // Call work(begin, end, thread) on parts of `rows` rows that cost about `floats_per_row` each.
    template <class Work> void run_rows(size_t rows, size_t floats_per_row, const Work& work);

    const InstructionSet isa_;
    const Kernels* kernels_;
    std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();
    std::shared_ptr<WeightStore> store_ = std::make_shared<WeightStore>();
    std::vector<std::unique_ptr<float[]>> scratch_;
    size_t scratch_size_ = 0;
    std::vector<std::vector<Range>> first_reads_;  // of each job of a step, by each thread
    size_t next_job_ = 0;
    std::vector<uint32_t> places_, block_ends_;  // of the inputs that are to be read
    std::vector<float> nonzero_x_;
    size_t skipped_bytes_ = 0;
    bool sparse_ = true;
    std::mutex one_call_;
    std::unique_ptr<ThreadPool> threads_;
};

}  // namespace rwkv
