// Python bindings of the CPU backend; only ops/cpu.py and network/traced.py use them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <optional>

#include "context.hpp"
#include "program.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace rwkv;

namespace {

template <class T, int Dimensions>
using Input = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
template <int Dimensions> using States = nb::ndarray<float, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

// The memory of a pool, which Python owns.
struct Pool {
    States<4> shifts;
    States<5> wkv;
    PoolView view;
};

// Releases Python's global lock for its lifetime, and locks the context against other calls.
class Released {
public:
    explicit Released(Context& context) : alone_(context.one_call()) {}

private:
    nb::gil_scoped_release gil_;
    std::lock_guard<std::mutex> alone_;  // unlocked before the thread waits for the interpreter
};

Dtype dtype_of(const std::string& name) {
    if (name == "fp32") return Dtype::FP32;
    if (name == "bf16") return Dtype::BF16;
    if (name == "fp16") return Dtype::FP16;
    throw nb::value_error("a weight's dtype must be fp32, bf16 or fp16");
}

// The type of a large matrix that is rounded for integer products.
Dtype integer_dtype(const std::string& rounding) {
    if (rounding == "w8a8") return Dtype::W8A8;
    if (rounding == "int4") return Dtype::INT4;
    throw nb::value_error("a weight's rounding must be w8a8 or int4");
}

// The type of a weight in a file.
Dtype stored_dtype(const std::string& name) { return name == "w8a8" || name == "int4" ? integer_dtype(name) : dtype_of(name); }

Activation activation_of(const char* name) {
    switch (name[0]) {
        case 't': return Activation::TANH;
        case 's': return Activation::SIGMOID;
        case 'd': return Activation::DECAY;
        case 'r': return Activation::RELU_SQUARED;
        default: return Activation::NONE;
    }
}

const uint8_t* bytes_of(const Weight& weight, Dtype dtype) {
    if (weight.itemsize() != size_of(dtype)) throw nb::value_error("a weight's elements are not of its dtype");
    return static_cast<const uint8_t*>(weight.data());
}

StoredMatrix stored_matrix(const Weight& weight, Dtype dtype) {
    const int64_t element = static_cast<int64_t>(size_of(dtype));
    return {bytes_of(weight, dtype), dtype, weight.stride(0) * element, weight.stride(1) * element};
}

std::optional<LinearLayer> read_layer(Context& context, int descriptor, uint64_t start, const std::string& stored, size_t out,
                                      size_t in, const char* activation, const std::string& dtype, bool sparse_inputs) {
    const StoredRows rows{descriptor, start, stored_dtype(stored)};
    const Dtype packed = dtype == "int8" ? Dtype::INT8 : stored_dtype(dtype);
    if (scaled_inputs(packed) == 0 && packed != rows.dtype)
        throw nb::value_error("a weight in a file is packed in its own type, or rounded");
    const Activation function = activation_of(activation);
    nb::gil_scoped_release release;  // another thread hashes the file
    return context.read_layer(rows, out, in, function, packed, sparse_inputs);
}

std::optional<Table> read_table(Context& context, int descriptor, uint64_t start, const std::string& stored, size_t vocab_size,
                                size_t width) {
    const StoredRows rows{descriptor, start, dtype_of(stored)};
    nb::gil_scoped_release release;
    return context.read_table(rows, vocab_size, width);
}

template <class T> std::vector<T> copied(const Input<T, 1>& values) { return {values.data(), values.data() + values.size()}; }

Pool make_pool(States<4> shifts, States<5> wkv) {
    const PoolView view{shifts.data(), wkv.data(), wkv.shape(0), wkv.shape(1), wkv.shape(2), wkv.shape(3)};
    if (wkv.shape(3) != wkv.shape(4) || shifts.shape(0) != view.capacity || shifts.shape(1) != view.num_layers ||
        shifts.shape(2) != 2 || shifts.shape(3) != view.width())
        throw nb::value_error("a pool's shifts must be [capacity, L, 2, H N] and its wkv [capacity, L, H, N, N]");
    if (view.head_size > MAX_HEAD_SIZE) throw nb::value_error("head sizes above 256 are not supported");
    use_huge_pages(wkv.data(), wkv.size() * sizeof(float));
    return {shifts, wkv, view};
}

Step begin(Context& context, Input<int64_t, 1> tokens, Input<int64_t, 1> starts, Input<int64_t, 1> slots,
           Input<int64_t, 1> outputs, const Pool& pool) {
    context.begin();
    return Step(copied(tokens), copied(starts), copied(slots), copied(outputs), pool.view);
}

nb::tuple tuple_of(std::vector<ArrayPtr> arrays) {
    nb::list result;
    for (ArrayPtr& array : arrays) result.append(nb::cast(std::move(array)));
    return nb::tuple(result);
}

size_t shift_of(const char* kind) { return kind[0] == 'a' ? 0 : 1; }

nb::tuple mixed(Context& context, Step& step, const char* kind, size_t layer, const Array& x, const Vector& weight,
                const Vector& bias, const Vector& mix) {
    return tuple_of(context.shift_mix(step, shift_of(kind), layer, x, weight, bias, mix));
}

// `products` holds records of x, layer, add, blend and times, see `Product` in ops/__init__.py.
nb::tuple linears(Context& context, nb::sequence products) {
    const auto array_at = [](nb::handle record, size_t i) { return nb::cast<const Array*>(record[i]); };
    std::vector<Product> converted;
    for (nb::handle record : products) {
        const nb::object blend = record[3];
        converted.push_back({array_at(record, 0), nb::cast<const LinearLayer*>(record[1]), array_at(record, 2),
                             blend.is_none() ? nullptr : array_at(blend, 0),
                             blend.is_none() ? array_at(record, 4) : array_at(blend, 1)});
    }
    return tuple_of(context.linears(converted));
}

std::vector<Program::Register> traced_linears(Program& program, nb::sequence products) {
    std::vector<Program::Product> converted;
    for (nb::handle record : products)
        converted.push_back({nb::cast<size_t>(record[0]), nb::cast<const LinearLayer&>(record[1]),
                             nb::cast<std::optional<size_t>>(record[2]),
                             nb::cast<std::optional<std::pair<size_t, size_t>>>(record[3]),
                             nb::cast<std::optional<size_t>>(record[4])});
    return program.linears(converted);
}

void check_head_logits(const States<2>& logits, const Step& step, size_t num_logits) {
    if (logits.shape(0) != step.outputs.size() || logits.shape(1) != num_logits)
        throw nb::value_error("head: the logits must be [outputs, vocabulary]");
}

ArrayPtr array_of(Context& context, Input<float, 2> values) {
    ArrayPtr array = context.array(values.shape(0), values.shape(1));
    for (size_t row = 0; row < array->rows; ++row)
        std::copy_n(values.data() + row * array->width, array->width, array->data + row * array->stride);
    return array;
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> numpy_of(nb::handle_t<Array> self) {
    Array& array = nb::cast<Array&>(self);
    const size_t shape[] = {array.rows, array.width};
    const int64_t strides[] = {static_cast<int64_t>(array.stride), 1};
    return {array.data, 2, shape, self, strides};
}

void check_tokens(const Input<int64_t, 1>& tokens, size_t vocab_size) {
    for (size_t i = 0; i < tokens.size(); ++i)
        if (tokens.data()[i] < 0 || static_cast<size_t>(tokens.data()[i]) >= vocab_size)
            throw nb::value_error("a penalised or target token is not in the vocabulary");
}

// Sample from the first rows of `logits`, with one setting of each kind per row, and look up `target_ids` in the others.
void choose(Context& context, Input<float, 2> logits, Input<float, 1> temperature, Input<float, 1> top_p,
            Input<int64_t, 1> top_k, Input<uint8_t, 1> orders, Input<int64_t, 1> penalty_ids, Input<float, 1> penalty_values,
            Input<int64_t, 1> penalty_starts, Input<uint64_t, 1> noise_keys,
            Input<int64_t, 1> turns, Input<int64_t, 1> steps, Input<int64_t, 1> target_ids, States<1> logprobs,
            nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> tokens,
            std::optional<Input<double, 1>> min_p_cutoffs) {
    const size_t num_sampled = temperature.size(), count = num_sampled + target_ids.size(), vocab_size = logits.shape(1);
    if (logits.shape(0) != count || vocab_size == 0) throw nb::value_error("one row of logits is needed for each token");
    if (tokens.size() != count || logprobs.size() != count) throw nb::value_error("one result is needed for each token");
    for (const size_t size : {top_p.size(), top_k.size(), orders.size(), noise_keys.size(), turns.size(), steps.size(),
                              penalty_starts.size() - 1})
        if (size != num_sampled) throw nb::value_error("a sample batch must have one value of each kind for each row");
    if (min_p_cutoffs && min_p_cutoffs->size() != num_sampled)
        throw nb::value_error("a sample batch must have one value of each kind for each row");
    if (penalty_ids.size() != penalty_values.size()) throw nb::value_error("each penalised token needs one value");
    check_tokens(penalty_ids, vocab_size);
    check_tokens(target_ids, vocab_size);
    std::vector<SampleRow> rows(count);
    for (size_t i = 0; i < num_sampled; ++i) {
        const int64_t start = penalty_starts.data()[i], stop = penalty_starts.data()[i + 1];
        if (start < 0 || start > stop || static_cast<size_t>(stop) > penalty_ids.size())
            throw nb::value_error("a sample batch's penalty_starts must ascend within its penalties");
        rows[i] = {logits.data() + i * vocab_size, vocab_size, temperature.data()[i], top_p.data()[i], top_k.data()[i],
                   (orders.data()[i] & 1) != 0, (orders.data()[i] & 2) != 0,
                   min_p_cutoffs ? min_p_cutoffs->data()[i] : -std::numeric_limits<double>::infinity(),
                   penalty_ids.data() + start, penalty_values.data() + start,
                   static_cast<size_t>(stop - start), noise_keys.data()[i], static_cast<uint32_t>(turns.data()[i]),
                   static_cast<uint32_t>(steps.data()[i]), -1};
    }
    for (size_t i = num_sampled; i < count; ++i) {
        rows[i].logits = logits.data() + i * vocab_size;
        rows[i].vocab_size = vocab_size;
        rows[i].target = target_ids.data()[i - num_sampled];
    }
    std::vector<Choice> choices(count);
    const Released released(context);
    context.choose(rows.data(), count, choices.data());
    for (size_t i = 0; i < count; ++i) {
        tokens.data()[i] = choices[i].token;
        logprobs.data()[i] = choices[i].logprob;
    }
}

void read_all(Context& context, Input<float, 1> data) {
    constexpr size_t PART = size_t(1) << 18;
    std::vector<float> sums(ceil_div(data.size(), PART));
    context.threads().run(sums.size(), [&](size_t part, size_t) {
        sums[part] = context.kernels().read(data.data() + part * PART, std::min(PART, data.size() - part * PART));
    });
}

constexpr size_t PEAK_PARTS = 16;  // for each thread

void multiply_add(Context& context, size_t rounds) {
    std::vector<float> sums(PEAK_PARTS * context.num_threads());
    context.threads().run(sums.size(), [&](size_t part, size_t) { sums[part] = context.kernels().multiply_add(rounds); });
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "CPU kernels of rwkvbatch; use them through rwkvbatch.model.ops.cpu.";

    nb::class_<LinearLayer>(m, "LinearLayer").def_prop_ro("outputs", [](const LinearLayer& l) { return l.weight.packed.out; });
    nb::class_<Vector>(m, "Vector");
    nb::class_<Table>(m, "Table");
    nb::class_<Array>(m, "Array").def("numpy", &numpy_of, nb::rv_policy::reference_internal);
    nb::class_<Pool>(m, "Pool");
    nb::class_<Step>(m, "Step").def_prop_ro("num_outputs", [](const Step& s) { return s.outputs.size(); });

    nb::class_<Program>(m, "Program")
        .def(nb::init<>())
        .def_prop_ro("num_logits", &Program::num_logits)
        .def("embed", &Program::embed)
        .def("shift_mix", [](Program& p, const char* kind, size_t layer, size_t x, const Vector& weight, const Vector& bias,
                             const Vector& mix) { return p.shift_mix(shift_of(kind), layer, x, weight, bias, mix); })
        .def("linears", &traced_linears)
        .def("token_matrix", &Program::token_matrix)
        .def("wkv7", [](Program& p, size_t layer, const std::array<size_t, 6>& inputs, const Vector& k_k, const Vector& k_a,
                        const Vector& r_k, const Vector& norm_weight, const Vector& norm_bias) {
            return p.wkv7(layer, inputs, {k_k, k_a, r_k, norm_weight, norm_bias});
        })
        .def("head", &Program::head);

    nb::class_<Context>(m, "Context")
        .def(nb::init<size_t, const std::string&>(), "threads"_a, "isa"_a)
        .def_prop_ro("isa", &Context::isa)
        .def_prop_ro("threads", &Context::num_threads)
        .def_prop_ro("weight_bytes", &Context::weight_bytes)
        .def_prop_ro("skipped_bytes", &Context::skipped_bytes)
        .def("set_sparse", &Context::set_sparse)
        .def("set_prefetch", &Context::set_prefetch)
        .def("set_guard", [](Context& c, bool guard) { c.arena().set_guard(guard); })
        .def("take_damage", [](Context& c) { return c.arena().take_damage(); })
        .def("array", &array_of)
        .def("linear_layer", [](Context& c, const Weight& weight, const std::string& dtype,
                                std::optional<Input<float, 1>> bias, const char* activation, bool as_int8) {
            if (bias && bias->size() != weight.shape(0)) throw nb::value_error("a linear layer needs one bias for each output");
            const Dtype stored = dtype_of(dtype);
            return c.linear_layer(stored_matrix(weight, stored), weight.shape(0), weight.shape(1),
                                  bias ? bias->data() : nullptr, activation_of(activation), as_int8 ? Dtype::INT8 : stored, false);
        }, "weight"_a, "dtype"_a, "bias"_a.none(), "activation"_a, "as_int8"_a)
        .def("integer_layer", [](Context& c, const Weight& weight, const std::string& dtype,
                                 std::optional<Input<float, 1>> bias, const char* activation, const std::string& rounding,
                                 bool sparse_inputs) {
            if (bias && bias->size() != weight.shape(0)) throw nb::value_error("a linear layer needs one bias for each output");
            return c.linear_layer(stored_matrix(weight, dtype_of(dtype)), weight.shape(0), weight.shape(1),
                                  bias ? bias->data() : nullptr, activation_of(activation), integer_dtype(rounding), sparse_inputs);
        }, "weight"_a, "dtype"_a, "bias"_a.none(), "activation"_a, "rounding"_a, "sparse_inputs"_a)
        .def("vector", [](Context& c, Input<float, 2> weight) {
            return c.vector(weight.data(), weight.shape(0), weight.shape(1));
        })
        .def("table", [](Context& c, const Weight& weight, const std::string& dtype) {
            const Dtype kind = dtype_of(dtype);
            if (weight.stride(1) != 1 || weight.stride(0) != static_cast<int64_t>(weight.shape(1)))
                throw nb::value_error("an embedding table must have no gaps");
            return c.table(bytes_of(weight, kind), kind, weight.shape(0), weight.shape(1));
        })
        .def("read_layer", &read_layer, "descriptor"_a, "start"_a, "stored"_a, "outputs"_a, "inputs"_a, "activation"_a, "dtype"_a,
             "sparse_inputs"_a)
        .def("read_table", &read_table, "descriptor"_a, "start"_a, "stored"_a, "vocab_size"_a, "width"_a)
        .def("pool", [](Context&, States<4> shifts, States<5> wkv) { return make_pool(shifts, wkv); })
        .def("begin", &begin, nb::keep_alive<0, 6>())
        .def("embed", &Context::embed)
        .def("shift_mix", &mixed)
        .def("linears", &linears)
        .def("token_matrix", &Context::token_matrix)
        .def("wkv7", [](Context& c, Step& step, size_t layer, const Array& r, const Array& w, const Array& k, const Array& v,
                        const Array& a, const Array& g, const Vector& k_k, const Vector& k_a, const Vector& r_k,
                        const Vector& norm_weight, const Vector& norm_bias) {
            return c.wkv7(step, layer, r, w, k, v, a, g, {k_k, k_a, r_k, norm_weight, norm_bias});
        })
        .def("head", [](Context& c, const Step& step, const Array& x, const Vector& weight, const Vector& bias,
                        const LinearLayer& head, States<2> logits) {
            check_head_logits(logits, step, head.weight.packed.out);
            c.head(step, x, weight, bias, head, logits.data());
        })
        .def("run", [](Context& c, const Program& program, Input<int64_t, 1> tokens, Input<int64_t, 1> starts,
                       Input<int64_t, 1> slots, Input<int64_t, 1> outputs, const Pool& pool, States<2> logits,
                       std::optional<Input<float, 5>> start_wkv) {
            const Released released(c);
            Step step = begin(c, tokens, starts, slots, outputs, pool);
            check_head_logits(logits, step, program.num_logits());
            if (start_wkv) {
                for (size_t axis = 0; axis < 5; ++axis)
                    if (start_wkv->shape(axis) != (axis == 0 ? step.slots.size() : pool.wkv.shape(axis)))
                        throw nb::value_error("start_wkv must be [sequences, L, H, N, N]");
                step.start_wkv = start_wkv->data();
            }
            program.run(c, step, logits.data());
        }, nb::arg("program"), nb::arg("tokens"), nb::arg("starts"), nb::arg("slots"), nb::arg("outputs"), nb::arg("pool"),
             nb::arg("logits"), nb::arg("start_wkv") = nb::none())
        .def("activate", [](Context& c, States<1> values, const char* activation) {
            c.kernels().activate(values.data(), values.size(), activation_of(activation));
        })
        .def("choose", &choose, nb::arg("logits"), nb::arg("temperature"), nb::arg("top_p"), nb::arg("top_k"),
             nb::arg("orders"), nb::arg("penalty_ids"), nb::arg("penalty_values"), nb::arg("penalty_starts"),
             nb::arg("noise_keys"), nb::arg("turns"), nb::arg("steps"), nb::arg("target_ids"), nb::arg("logprobs"),
             nb::arg("tokens"), nb::arg("min_p_cutoffs") = nb::none())
        .def("read_all", &read_all)
        .def("multiply_add", &multiply_add)
        .def("operations", [](const Context& c, size_t rounds) {
            return 2 * PEAK_PARTS * c.num_threads() * rounds * MULTIPLY_ADDS;
        });
}
