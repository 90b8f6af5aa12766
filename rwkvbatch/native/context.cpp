#include "context.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace rwkv {
namespace {

// Below these, waking a second thread costs more than it saves.
constexpr size_t MIN_SHARED_PRODUCTS = 1 << 14;
constexpr size_t MIN_SHARED_FLOATS = 1 << 13;
constexpr size_t MIN_SHARED_STATE = 1 << 14;
constexpr size_t MIN_SHARED_MIXES = 1 << 12;

// The most that a thread prefetches; fits into the second-level cache of any processor.
constexpr size_t MAX_EXPECTED_BYTES = size_t(128) << 10;
constexpr size_t MAX_NOTED_JOBS = 1 << 12;

// With few rows, tasks are merged up to this many bytes of weights.
constexpr size_t TASK_BYTES = size_t(64) << 10;
constexpr size_t FEW_ROWS = 6;

// The weights of zero inputs are skipped if at most this many inputs are nonzero. The shorter the stretch of memory that an input's
// weights take in a band, the slower they are read.
constexpr size_t LONG_STRETCH = 256, SHORT_STRETCH = 64;
size_t max_nonzero(const PackedMatrix& weight) {
    const size_t stretch = weight.input_bytes(weight.band_width(0));
    const size_t percent = stretch >= LONG_STRETCH ? 42 : stretch > SHORT_STRETCH ? 36 : 28;
    return weight.in * percent / 100;
}

constexpr float LAYER_NORM_EPS = 1e-5f;

InstructionSet instruction_set(const std::string& isa) {
    std::vector<InstructionSet> available;
    const auto add = [&](const char* name, const Kernels* kernels, const IntegerKernels* (*integer)(), const PackingKernels* packing) {
        if (kernels != nullptr && integer() != nullptr) available.push_back({name, kernels, integer(), packing});
    };
#if defined(RWKV_X86)
    add("avx512amx", avx512_kernels(), avx512amx_integer_kernels, avx512_packing_kernels());
    add("avx512vnni", avx512_kernels(), avx512vnni_integer_kernels, avx512_packing_kernels());
    add("avx512", avx512_kernels(), avx512_integer_kernels, avx512_packing_kernels());
    add("avxvnni", avx2_kernels(), avxvnni_integer_kernels, avx2_packing_kernels());
    add("avx2", avx2_kernels(), avx2_integer_kernels, avx2_packing_kernels());
#elif defined(RWKV_ARM64)
    add("neoni8mm", neon_kernels(), neoni8mm_integer_kernels, neon_packing_kernels());
    add("neondot", neon_kernels(), neondot_integer_kernels, neon_packing_kernels());
    add("neon", neon_kernels(), neon_integer_kernels, neon_packing_kernels());
#endif
    add("portable", portable_kernels(), portable_integer_kernels, portable_packing_kernels());
    for (const InstructionSet& candidate : available)
        if (isa == "auto" || isa == candidate.name) return candidate;
    throw std::invalid_argument("instruction set '" + isa + "' is not available here; 'auto' and 'portable' always are");
}

}  // namespace

bool is_intel() {
#if defined(RWKV_X86)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

namespace {

void check(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Prefetch memory that will be read soon. Data that is read once per step is in no cache by then, and prefetching it at once is
// faster than missing line by line.
void fetch(const void* data, size_t num_bytes) {
    constexpr size_t LINE = 64;
    const char* const bytes = static_cast<const char*>(data);
    for (size_t i = 0; i < num_bytes; i += LINE) __builtin_prefetch(bytes + i);
}

void fetch_floats(const float* data, size_t count) { fetch(data, count * sizeof(float)); }

void fetch_rows(ConstRows rows, size_t num_rows, size_t width) {
    for (size_t row = 0; row < num_rows && rows.data != nullptr; ++row) fetch_floats(rows.data + row * rows.stride, width);
}

}  // namespace

Array::Array(std::shared_ptr<Arena> arena, size_t rows_, size_t width_)
    : rows(rows_), width(width_), stride(ceil_div(width_, PANEL) * PANEL + PANEL), arena_(std::move(arena)) {
    data = arena_->acquire(rows * stride, capacity_);
}

Array::~Array() { arena_->release(data, capacity_); }

Step::Step(std::vector<int64_t> tokens_, std::vector<int64_t> starts_, std::vector<int64_t> slots_,
           std::vector<int64_t> outputs_, const PoolView& pool_)
    : tokens(std::move(tokens_)), starts(std::move(starts_)), slots(std::move(slots_)), outputs(std::move(outputs_)),
      pool(pool_) {
    const int64_t num_rows = static_cast<int64_t>(tokens.size());
    check(!slots.empty() && starts.size() == slots.size() + 1 && starts.front() == 0 && starts.back() == num_rows,
          "a batch's starts must run from 0 to the number of its tokens, one more than it has slots");
    for (size_t b = 0; b < slots.size(); ++b) check(starts[b] < starts[b + 1], "a batch must have no empty sequence");
    std::vector<bool> taken(pool.capacity, false);
    for (const int64_t slot : slots) {
        check(slot >= 0 && static_cast<size_t>(slot) < pool.capacity, "a batch's slot is not in the pool");
        check(!taken[static_cast<size_t>(slot)], "a batch names the same slot twice");
        taken[static_cast<size_t>(slot)] = true;
    }
    for (const int64_t row : outputs) check(row >= 0 && row < num_rows, "a batch's output row is not one of its rows");

    longest_first.resize(slots.size());
    std::iota(longest_first.begin(), longest_first.end(), 0);
    std::stable_sort(longest_first.begin(), longest_first.end(), [this](int64_t a, int64_t b) {
        return starts[a + 1] - starts[a] > starts[b + 1] - starts[b];
    });
    carried.assign(tokens.size(), nullptr);
    states.assign(slots.size(), nullptr);
    starting_states.assign(slots.size(), nullptr);
}

Context::Context(size_t num_threads, const std::string& isa)
    : isa_(instruction_set(isa)), kernels_(isa_.kernels), scratch_(std::max<size_t>(num_threads, 1)), threads_(new ThreadPool(scratch_.size())) {
    need_scratch(LINEAR_SCRATCH);
}

ThreadPool& Context::threads() {
    // A forked child has its parent's pool object, but not the threads. It makes a new pool, and does not destroy the old one,
    // whose locks and counters are in an unknown state.
    if (threads_->is_of_another_process()) {
        const size_t num_threads = threads_->size();
        (void)threads_.release();
        threads_.reset(new ThreadPool(num_threads));
    }
    return *threads_;
}

void Context::need_scratch(size_t count) {
    if (count <= scratch_size_) return;
    for (auto& buffer : scratch_) buffer.reset(new float[count]);
    scratch_size_ = count;
}

template <class Work> void Context::run_rows(size_t rows, size_t floats_per_row, const Work& work) {
    if (rows * floats_per_row < MIN_SHARED_FLOATS || threads_->size() == 1) {
        work(0, rows, 0);
        return;
    }
    const size_t parts = std::min(rows, threads_->size() * 4);
    threads().run(parts, [&](size_t part, size_t thread) {
        work(rows * part / parts, rows * (part + 1) / parts, thread);
    });
}

ArrayPtr Context::array(size_t rows, size_t width) { return std::make_unique<Array>(arena_, rows, width); }

void Context::check_tokens(const Step& step, const Table& table) const {
    for (const int64_t token : step.tokens)
        if (token < 0 || static_cast<size_t>(token) >= table.vocab_size)
            throw std::invalid_argument("token ids must be in [0, " + std::to_string(table.vocab_size) + "), got " +
                                        std::to_string(token));
}

ArrayPtr Context::embed(const Step& step, const Table& table, const Vector& weight, const Vector& bias) {
    const StandardArithmetic arithmetic;
    const size_t rows = step.tokens.size();
    check(weight.width == table.width && bias.width == table.width, "the embedding's norm must have its width");
    check_tokens(step, table);
    need_scratch(table.width);
    ArrayPtr out = array(rows, table.width);
    const NormJob norm{ConstRows(nullptr, 0), nullptr, table.width, weight.data, bias.data, LAYER_NORM_EPS, out->view()};
    const EmbedJob job{table.data, table.dtype, step.tokens.data(), norm};
    run_rows(rows, table.width, [&](size_t begin, size_t end, size_t thread) {
        kernels_->embed(job, begin, end, scratch(thread));
    });
    return out;
}

ArrayPtr Context::token_matrix(const Step& step, const Table& table, const Array& offset, const Array& x) {
    const StandardArithmetic arithmetic;
    const size_t rows = step.tokens.size(), size = x.width;
    check(x.rows == rows && offset.rows == rows && size <= MAX_TOKEN_MATRIX && offset.width == size * size &&
              table.width == size * size,
          "token_matrix: the activations and the table have different sizes");
    check_tokens(step, table);
    need_scratch(table.width);
    ArrayPtr out = array(rows, size);
    const TokenMatrixJob job{table.data, table.dtype, step.tokens.data(), offset.view(), x.view(), size, out->view()};
    run_rows(rows, table.width, [&](size_t begin, size_t end, size_t thread) {
        kernels_->token_matrix(job, begin, end, scratch(thread));
    });
    return out;
}

std::vector<ArrayPtr> Context::shift_mix(Step& step, size_t kind, size_t layer, const Array& x, const Vector& weight,
                                         const Vector& bias, const Vector& mix) {
    const StandardArithmetic arithmetic;
    const size_t rows = step.tokens.size(), width = x.width;
    check(x.rows == rows && width == step.pool.width() && layer < step.pool.num_layers,
          "shift_mix: the activations do not have the step's shape");
    check(weight.width == width && bias.width == width && mix.width == width && mix.rows <= MAX_MIXES,
          "shift_mix: the weights do not have the activations' width");
    for (const Vector* vector : {&weight, &bias, &mix}) fetch_floats(vector->data, vector->rows * width);
    if (rows == 1) {
        fetch_rows(x.view(), rows, width);
        fetch_floats(step.pool.shift(step.slots[0], layer, kind), width);
    }
    const ArrayPtr normed = array(rows, width);
    const NormJob norm{x.view(), nullptr, width, weight.data, bias.data, LAYER_NORM_EPS, normed->view()};
    run_rows(rows, width, [&](size_t begin, size_t end, size_t) { kernels_->layer_norm(norm, begin, end); });

    for (size_t b = 0; b < step.slots.size(); ++b)
        step.carried[step.starts[b]] = step.pool.shift(step.slots[b], layer, kind);
    std::vector<ArrayPtr> mixed;
    MixJob job{normed->view(), step.carried.data(), width, mix.rows, mix.data, {}};
    for (size_t m = 0; m < mix.rows; ++m) {
        mixed.push_back(array(rows, width));
        job.out[m] = mixed.back()->view();
    }
    if (rows == 1 && width * mix.rows >= MIN_SHARED_MIXES) {
        // One task per mix: the memory that it writes comes from the core that used it last, one line at a time.
        threads().run(mix.rows, [&](size_t m, size_t) {
            kernels_->mix({normed->view(), step.carried.data(), width, 1, mix.data + m * width, {job.out[m]}}, 0, 1);
        });
    } else {
        run_rows(rows, width * mix.rows, [&](size_t begin, size_t end, size_t) { kernels_->mix(job, begin, end); });
    }
    for (size_t b = 0; b < step.slots.size(); ++b)
        std::memcpy(step.pool.shift(step.slots[b], layer, kind), normed->data + (step.starts[b + 1] - 1) * normed->stride,
                    width * sizeof(float));
    return mixed;
}

void Context::begin() {
    next_job_ = 0;
    if (first_reads_.empty()) return;
    ThreadPool& pool = threads();
    for (size_t thread = 0; thread < pool.size(); ++thread) pool.expect(thread, first_reads_[0][thread]);
    pool.wake();
}

template <class FirstRead> void Context::note_job(const FirstRead& first_read) {
    if (next_job_ >= MAX_NOTED_JOBS) return;
    if (next_job_ == first_reads_.size()) first_reads_.emplace_back(threads_->size());
    std::vector<Range>& reads = first_reads_[next_job_++];
    for (size_t thread = 0; thread < threads_->size(); ++thread) {
        reads[thread] = first_read(thread);
        threads_->expect(thread, next_job_ < first_reads_.size() ? first_reads_[next_job_][thread] : Range{});
    }
}

namespace {

size_t panels_per_task(const LinearJob& job, size_t num_threads) {
    const size_t panels = job.weight.num_panels();
    if (job.num_rows <= FEW_ROWS)
        return 2 * BAND * job.weight.panel_bytes() <= TASK_BYTES ? LINEAR_MAX_PANELS_PER_TASK : BAND;
    // A few tasks for each thread, of whole register tiles, so that other threads can help one that is late.
    const size_t per_task = panels / (num_threads * 4);
    if (per_task >= LINEAR_MAX_PANELS_PER_TASK) return LINEAR_MAX_PANELS_PER_TASK;
    // Bands stored by input are not divided.
    // Neither are pairs of panels (`PackedMatrix`), which only bf16 weights have.
    const size_t unit = job.weight.dtype == Dtype::BF16 ? 2 : 1;
    return job.weight.by_input ? BAND : std::min<size_t>(ceil_div(ceil_div(panels, num_threads), unit) * unit, BAND);
}

// A task of a group of layers.
struct LinearTask {
    LinearTask(const std::vector<LinearJob>& jobs, size_t task_) : job(jobs.data()), task(task_) {
        for (; task >= job->num_tasks(); ++job) task -= job->num_tasks();
    }
    const LinearJob* job;
    size_t task;

    const uint8_t* weights() const { return job->weights_of(task); }
    size_t bytes_left() const { return job->weight.data + job->weight.num_bytes() - weights(); }
};

// Prefetch everything except weights that the tasks `first` to `end` read. Other threads have written it, so it is in the caches of
// other cores.
void fetch_inputs(const std::vector<LinearJob>& jobs, size_t first, size_t end) {
    fetch(jobs.data(), jobs.size() * sizeof(LinearJob));
    size_t next = 0;
    for (const LinearJob& job : jobs) {
        const size_t begin = next;
        next += job.num_tasks();
        if (begin >= end || next <= first) continue;
        const bool rounded = is_integer(job.weight.dtype);
        if (job.sparse.offsets != nullptr && rounded) {
            fetch(job.sparse.offsets, job.sparse.count * sizeof(uint32_t));
            fetch_rows(job.x, job.num_rows, job.sparse.count * MAX_QUAD_BYTES / QUAD / sizeof(float));
            fetch(job.groups, ceil_div(job.weight.in, scaled_inputs(job.weight.dtype)) * job.num_rows * sizeof(InputGroup));
        } else if (job.sparse.offsets != nullptr) {
            fetch(job.sparse.offsets, job.sparse.count * sizeof(uint32_t));
            fetch_rows({job.sparse.x, job.sparse.x_stride}, job.num_rows, job.sparse.count);
        } else {
            fetch_rows(job.x, job.num_rows, rounded ? quantized_floats(job.weight.in) : job.weight.in);
            if (rounded) fetch(job.groups, ceil_div(job.weight.in, scaled_inputs(job.weight.dtype)) * job.num_rows * sizeof(InputGroup));
        }
        for (const ConstRows& rows : {job.add, job.start, job.target}) fetch_rows(rows, job.num_rows, job.weight.out);
        if (job.bias != nullptr) fetch_floats(job.bias, job.weight.out);
    }
}

}  // namespace

std::vector<ArrayPtr> Context::quantize_inputs(std::vector<LinearJob>& jobs) {
    std::vector<ArrayPtr> rounded;
    std::vector<QuantizeJob> rounding;
    size_t width = 0, rows = 0;
    for (LinearJob& job : jobs) {
        if (!is_integer(job.weight.dtype)) continue;
        rows = job.num_rows;
        width += job.weight.in;
        const size_t num_groups = ceil_div(job.weight.in, scaled_inputs(job.weight.dtype));
        rounded.push_back(array(1, num_groups * rows * sizeof(InputGroup) / sizeof(float)));
        auto* const groups = reinterpret_cast<InputGroup*>(rounded.back()->data);
        rounded.push_back(array(rows, quantized_floats(job.weight.in)));
        rounding.push_back({job.x, rows, job.weight.in, job.weight.dtype, rounded.back()->view(), groups});
        job.x = rounded.back()->view();
        job.groups = groups;
    }
    if (!rounding.empty())
        run_rows(rows, width, [&](size_t begin, size_t end, size_t) {
            for (const QuantizeJob& job : rounding) isa_.integer_kernels->quantize(job, begin, end);
        });
    return rounded;
}

void Context::skip_zeros(LinearJob& job) {
    const size_t in = job.weight.in, rows = job.num_rows, stride = ceil_div(in, PANEL) * PANEL + PANEL;
    fetch_rows(job.x, rows, in);
    if (kernels_->count_nonzero(job.x, rows, in) > max_nonzero(job.weight)) return;

    const size_t num_blocks = ceil_div(in, SCALED_INPUTS);
    offsets_.resize(in + MAX_SPARSE_AHEAD);
    block_ends_.resize(num_blocks);
    nonzero_x_.resize(MAX_SPARSE_ROWS * stride);
    const size_t scales = job.weight.dtype == Dtype::INT8 ? sizeof(float) : 0;
    size_t count = 0;
    for (size_t block = 0; block < num_blocks; ++block) {
        const size_t end = std::min((block + 1) * SCALED_INPUTS, in);
        for (size_t k = block * SCALED_INPUTS; k < end; ++k) {
            bool needed = false;
            for (size_t i = 0; i < rows; ++i) {
                const float x = job.x.data[i * job.x.stride + k];
                nonzero_x_[i * stride + count] = x;
                needed |= x != 0.0f;  // NaN too
            }
            offsets_[count] = static_cast<uint32_t>(k + block * scales);
            count += needed;
        }
        block_ends_[block] = static_cast<uint32_t>(count);
    }
    // After the last offset follow those of the next band, for prefetching.
    const auto band = static_cast<uint32_t>(in + num_blocks * scales);
    for (size_t i = 0; i < MAX_SPARSE_AHEAD; ++i) offsets_[count + i] = band + (i < count ? offsets_[i] : 0);
    skipped_bytes_ += (in - count) * job.weight.input_bytes(job.weight.num_panels());
    job.sparse = {offsets_.data(), block_ends_.data(), count, nonzero_x_.data(), stride};
}

ArrayPtr Context::gather_inputs(LinearJob& job) {
    if (!sparse_) return nullptr;
    const PackedMatrix& weight = job.weight;
    const size_t num_groups = ceil_div(weight.in, SCALED_INPUTS), max_count = weight.in + num_groups * (QUAD - 1);
    offsets_.resize(max_count + MAX_SPARSE_AHEAD);
    block_ends_.resize(num_groups);
    ArrayPtr gathered = array(job.num_rows, quantized_floats(max_count));
    const QuantizedRows rows{reinterpret_cast<const uint8_t*>(job.x.data), job.num_rows, weight.in, job.x.stride * sizeof(float)};
    const SparseQuads to{offsets_.data(), block_ends_.data(), reinterpret_cast<uint8_t*>(gathered->data),
                         gathered->stride * sizeof(float)};
    const size_t count = isa_.integer_kernels->gather(rows, to);
    if (count == weight.in) return nullptr;
    skipped_bytes_ += (weight.in - count) * INPUT_LINE * weight.num_bands();
    job.x = gathered->view();
    job.sparse = {offsets_.data(), block_ends_.data(), block_ends_.back() * QUAD, nullptr, 0};
    return gathered;
}

void Context::run_linears(std::vector<LinearJob>& jobs) {
    std::vector<ArrayPtr> rounded = quantize_inputs(jobs);
    if (jobs.size() == 1 && jobs[0].weight.by_input && jobs[0].num_rows <= MAX_SPARSE_ROWS) rounded.push_back(gather_inputs(jobs[0]));
    size_t num_tasks = 0, products = 0;
    for (LinearJob& job : jobs) {
        job.prefetch = prefetch_;
        job.panels_per_task = panels_per_task(job, threads_->size());
        num_tasks += job.num_tasks();
        products += job.num_rows * job.weight.out * job.weight.in;
    }
    note_job([&](size_t thread) -> Range {
        const size_t first = threads_->first_task(thread, num_tasks);
        if (first == threads_->first_task(thread + 1, num_tasks)) return {};
        const LinearTask task(jobs, first);
        return {task.weights(), std::min(task.bytes_left(), MAX_EXPECTED_BYTES)};
    });
    const auto work = [&](size_t number, size_t thread) {
        if (jobs[0].num_rows <= FEW_ROWS && number == threads_->first_task(thread, num_tasks))
            fetch_inputs(jobs, number, threads_->first_task(thread + 1, num_tasks));
        const LinearTask task(jobs, number);
        const bool last = number + 1 == threads_->first_task(thread + 1, num_tasks);
        const uint8_t* next = task.weights();
        if (!last && number + 1 < num_tasks) next = LinearTask(jobs, number + 1).weights();
        else if (next_job_ < first_reads_.size()) next = first_reads_[next_job_][thread].data;
        (is_integer(task.job->weight.dtype) ? isa_.integer_kernels->linear : kernels_->linear)(*task.job, task.task,
                                                                                               scratch(thread), next);
    };
    if (products >= MIN_SHARED_PRODUCTS) threads().run(num_tasks, work);
    else for (size_t task = 0; task < num_tasks; ++task) work(task, 0);
}

std::vector<ArrayPtr> Context::linears(const std::vector<Product>& products) {
    const StandardArithmetic arithmetic;
    std::vector<ArrayPtr> results;
    std::vector<LinearJob> jobs;
    for (const Product& product : products)
        check(product.x->rows == products[0].x->rows, "linears: the layers have different numbers of rows");
    const auto rows_of = [](const Array* array) { return array != nullptr ? ConstRows(array->view()) : ConstRows(nullptr, 0); };
    for (const Product& product : products) {
        const Array& x = *product.x;
        const LinearLayer& layer = *product.layer;
        const PackedMatrix& weight = layer.weight.packed;
        check(x.width == weight.in, "linears: a layer's number of inputs is not the width of its activations");
        for (const Array* array : {product.add, product.start, product.target})
            check(array == nullptr || (array->rows == x.rows && array->width == weight.out),
                  "linears: an array to add, blend or multiply does not have the shape of the result");
        results.push_back(array(x.rows, weight.out));
        jobs.push_back({x.view(), x.rows, weight, layer.bias, layer.activation, rows_of(product.add),
                        rows_of(product.start), rows_of(product.target), results.back()->view(), 0, {}});
        results.back()->mostly_zero = layer.activation == Activation::RELU_SQUARED ||
                                      (product.start == nullptr && product.target != nullptr && product.target->mostly_zero);
    }
    if (sparse_ && products.size() == 1 && products[0].x->mostly_zero && products[0].x->rows <= MAX_SPARSE_ROWS &&
        !is_integer(jobs[0].weight.dtype))
        skip_zeros(jobs[0]);
    run_linears(jobs);
    return results;
}

ArrayPtr Context::wkv7(Step& step, size_t layer, const Array& r, const Array& w, const Array& k, const Array& v,
                       const Array& a, const Array& g, const LayerVectors& vectors) {
    const StandardArithmetic arithmetic;
    const size_t rows = step.tokens.size(), width = step.pool.width();
    for (const Array* array : {&r, &w, &k, &v, &a, &g})
        check(array->rows == rows && array->width == width, "wkv7: the activations do not have the step's shape");
    for (const Vector* vector : {&vectors.k_k, &vectors.k_a, &vectors.r_k, &vectors.norm_weight, &vectors.norm_bias})
        check(vector->width * vector->rows == width, "wkv7: the weights do not have the activations' width");
    check(layer < step.pool.num_layers && step.pool.head_size <= MAX_HEAD_SIZE, "wkv7: no such layer or head size");

    const size_t layer_floats = width * step.pool.head_size;
    for (size_t b = 0; b < step.slots.size(); ++b) {
        step.states[b] = step.pool.head_states(step.slots[b], layer);
        step.starting_states[b] = step.start_wkv == nullptr
                                      ? step.states[b]
                                      : step.start_wkv + (b * step.pool.num_layers + layer) * layer_floats;
    }
    // Tasks are whole sequences if there are enough of them for all threads.
    const size_t heads = step.pool.num_heads;
    const size_t heads_per_task = step.slots.size() >= 8 * threads_->size() ? heads
                                  : rows == 1 ? ceil_div(heads, threads_->size()) : 1;
    const size_t num_tasks = step.slots.size() * ceil_div(heads, heads_per_task);
    const size_t head_bytes = heads_per_task * step.pool.head_size * step.pool.head_size * sizeof(float);
    note_job([&](size_t thread) -> Range {
        const size_t first = threads_->first_task(thread, num_tasks), end = threads_->first_task(thread + 1, num_tasks);
        if (step.slots.size() > 1) return {};
        return {reinterpret_cast<const uint8_t*>(step.starting_states[0]) + first * head_bytes,
                std::min((end - first) * head_bytes, MAX_EXPECTED_BYTES)};
    });
    ArrayPtr out = array(rows, width);
    const Wkv7Job job{r.view(), w.view(), k.view(), v.view(), a.view(), g.view(),
                      vectors.k_k.data, vectors.k_a.data, vectors.r_k.data, vectors.norm_weight.data,
                      vectors.norm_bias.data, heads, step.pool.head_size, heads_per_task, step.starts.data(),
                      step.longest_first.data(), step.states.data(), step.starting_states.data(), out->view()};
    if (rows * width * step.pool.head_size < MIN_SHARED_STATE) {
        for (size_t task = 0; task < num_tasks; ++task) kernels_->wkv7(job, task);
        return out;
    }
    threads().run(num_tasks, [&](size_t task, size_t thread) {
        if (rows == 1 && task == threads_->first_task(thread, num_tasks)) {
            const size_t begin = task * heads_per_task * step.pool.head_size;
            const size_t end = std::min(begin + heads_per_task * step.pool.head_size, width);
            for (const ConstRows& input : {job.k, job.a, job.r, job.w, job.v, job.g})
                fetch_floats(input.data + begin, end - begin);
            for (const float* weight : {job.k_k, job.k_a, job.r_k, job.norm_weight, job.norm_bias})
                fetch_floats(weight + begin, end - begin);
        }
        kernels_->wkv7(job, task);
    });
    return out;
}

void Context::head(const Step& step, const Array& x, const Vector& weight, const Vector& bias, const LinearLayer& head,
                   float* logits) {
    const StandardArithmetic arithmetic;
    check(x.rows == step.tokens.size() && x.width == head.weight.packed.in && weight.width == x.width && bias.width == x.width,
          "head: the activations and weights have different widths");
    const size_t rows = step.outputs.size();
    const ArrayPtr normed = array(rows, x.width);
    const NormJob norm{x.view(), step.outputs.data(), x.width, weight.data, bias.data, LAYER_NORM_EPS, normed->view()};
    run_rows(rows, x.width, [&](size_t begin, size_t end, size_t) { kernels_->layer_norm(norm, begin, end); });
    const PackedMatrix& matrix = head.weight.packed;
    const ConstRows none(nullptr, 0);
    std::vector<LinearJob> jobs{{normed->view(), rows, matrix, head.bias, head.activation, none, none, none,
                                 {logits, matrix.out}, 0, {}}};
    run_linears(jobs);
}

void Context::choose(const SampleRow* rows, size_t count, Choice* choices) {
    const StandardArithmetic arithmetic;
    for (size_t i = 0; i < count; ++i)
        if (rows[i].target < 0) need_scratch(sample_scratch(rows[i].vocab_size));
    threads().run(count, [&](size_t i, size_t thread) {
        const SampleRow& row = rows[i];
        choices[i] = row.target < 0 ? kernels_->sample(row, scratch(thread))
                                   : kernels_->logprob(row.logits, row.vocab_size, row.target);
    });
}

}  // namespace rwkv
