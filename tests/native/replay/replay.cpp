// Runs a network and batches that `recorded.py` wrote, and writes logits, states and chosen tokens as they are in memory.
//
//     replay RECORDING RESULTS ISA THREADS
//
// prints the instruction set that it uses.
//
// A recording is a sequence of numbers (64 bits, of this machine's order) and arrays (their number of bytes, then these). Each
// record begins with its kind. Registers are numbered as `Program` numbers them.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "context.hpp"
#include "program.hpp"

using namespace rwkv;

namespace {

enum Kind : int64_t { END, VECTOR, LAYER, TABLE, EMBED, SHIFT_MIX, LINEARS, TOKEN_MATRIX, WKV7, HEAD, STEP, CHOOSE };

class File {
public:
    File(const char* path, const char* mode) : file_(std::fopen(path, mode)) {
        if (file_ == nullptr) throw std::runtime_error(std::string("cannot open ") + path);
    }
    ~File() { std::fclose(file_); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    void read(void* to, size_t num_bytes) {
        if (std::fread(to, 1, num_bytes, file_) != num_bytes) throw std::runtime_error("the recording is too short");
    }
    int64_t number() {
        int64_t value;
        read(&value, sizeof value);
        return value;
    }
    size_t index() { return static_cast<size_t>(number()); }
    template <class T> std::vector<T> array() {
        std::vector<T> values(index() / sizeof(T));
        read(values.data(), values.size() * sizeof(T));
        return values;
    }
    template <class T> void write(const std::vector<T>& values) {
        if (std::fwrite(values.data(), sizeof(T), values.size(), file_) != values.size())
            throw std::runtime_error("cannot write the results");
    }

private:
    std::FILE* file_;
};

class Replay {
public:
    Replay(Context& context, File& recording, File& results) : context_(context), in_(recording), out_(results) {}

    void run() {
        while (true) {
            switch (in_.number()) {
                case END: return;
                case VECTOR: {
                    const size_t rows = in_.index(), width = in_.index();
                    vectors_.push_back(context_.vector(in_.array<float>().data(), rows, width));
                    break;
                }
                case LAYER: read_layer(); break;
                case TABLE: {
                    const Dtype dtype = static_cast<Dtype>(in_.number());
                    const size_t vocab_size = in_.index(), width = in_.index();
                    tables_.push_back(context_.table(in_.array<uint8_t>().data(), dtype, vocab_size, width));
                    break;
                }
                case EMBED: {
                    const Table& table = tables_[in_.index()];
                    const Vector &weight = vector(), &bias = vector();
                    program_.embed(table, weight, bias);
                    break;
                }
                case SHIFT_MIX: {
                    const size_t kind = in_.index(), layer = in_.index(), x = in_.index();
                    const Vector &weight = vector(), &bias = vector(), &mix = vector();
                    program_.shift_mix(kind, layer, x, weight, bias, mix);
                    break;
                }
                case LINEARS: read_linears(); break;
                case TOKEN_MATRIX: {
                    const Table& table = tables_[in_.index()];
                    const size_t offset = in_.index(), x = in_.index();
                    program_.token_matrix(table, offset, x);
                    break;
                }
                case WKV7: {
                    const size_t layer = in_.index();
                    std::array<size_t, 6> inputs;
                    for (size_t& input : inputs) input = in_.index();
                    const Vector &k_k = vector(), &k_a = vector(), &r_k = vector(), &weight = vector(), &bias = vector();
                    program_.wkv7(layer, inputs, {k_k, k_a, r_k, weight, bias});
                    break;
                }
                case HEAD: {
                    const size_t x = in_.index();
                    const Vector &weight = vector(), &bias = vector();
                    program_.head(x, weight, bias, layers_[in_.index()]);
                    break;
                }
                case STEP: step(); break;
                case CHOOSE: choose(); break;
                default: throw std::runtime_error("the recording has a record of no known kind");
            }
        }
    }

private:
    const Vector& vector() { return vectors_[in_.index()]; }

    void read_layer() {
        const Dtype stored = static_cast<Dtype>(in_.number()), packed = static_cast<Dtype>(in_.number());
        const Activation activation = static_cast<Activation>(in_.number());
        const bool sparse_inputs = in_.number() != 0;
        const size_t out = in_.index(), width = in_.index();
        const std::vector<uint8_t> words = in_.array<uint8_t>();
        const std::vector<float> bias = in_.array<float>();
        const int64_t element = static_cast<int64_t>(size_of(stored));
        const StoredMatrix matrix{words.data(), stored, static_cast<int64_t>(width) * element, element};
        layers_.push_back(context_.linear_layer(matrix, out, width, bias.empty() ? nullptr : bias.data(), activation, packed,
                                                sparse_inputs));
    }

    void read_linears() {
        std::vector<Program::Product> products(in_.index());
        for (Program::Product& product : products) {
            product.x = in_.index();
            product.layer = layers_[in_.index()];
            const int64_t add = in_.number(), start = in_.number(), target = in_.number(), times = in_.number();
            if (add >= 0) product.add = add;
            if (start >= 0) product.blend = {static_cast<size_t>(start), static_cast<size_t>(target)};
            if (times >= 0) product.times = times;
        }
        program_.linears(products);
    }

    void step() {
        PoolView pool{};
        pool.capacity = in_.index();
        pool.num_layers = in_.index();
        pool.num_heads = in_.index();
        pool.head_size = in_.index();
        std::vector<float> shifts = in_.array<float>(), wkv = in_.array<float>();
        pool.shifts = shifts.data();
        pool.wkv = wkv.data();
        const std::vector<int64_t> tokens = in_.array<int64_t>(), starts = in_.array<int64_t>();
        const std::vector<int64_t> slots = in_.array<int64_t>(), outputs = in_.array<int64_t>();
        context_.begin();
        Step step(tokens, starts, slots, outputs, pool);
        std::vector<float> logits(outputs.size() * program_.num_logits());
        program_.run(context_, step, logits.data());
        out_.write(logits);
        out_.write(shifts);
        out_.write(wkv);
    }

    // Rows sampled from with one setting for all; tokens and then log-probabilities.
    void choose() {
        const size_t count = in_.index(), vocab_size = in_.index();
        const std::vector<float> settings = in_.array<float>(), logits = in_.array<float>();
        const std::vector<int64_t> numbers = in_.array<int64_t>();
        std::vector<SampleRow> rows(count);
        for (size_t i = 0; i < count; ++i) {
            rows[i] = {};
            rows[i].logits = logits.data() + i * vocab_size;
            rows[i].vocab_size = vocab_size;
            rows[i].temperature = settings[0];
            rows[i].top_p = settings[1];
            rows[i].min_p_cutoff = static_cast<double>(settings[2]);
            rows[i].top_k = numbers[0];
            rows[i].temperature_first = (numbers[1] & 1) != 0;
            rows[i].top_k_first = (numbers[1] & 2) != 0;
            rows[i].noise_key = static_cast<uint64_t>(numbers[2]) + i;
            rows[i].target = -1;
        }
        std::vector<Choice> choices(count);
        context_.choose(rows.data(), count, choices.data());
        std::vector<int64_t> tokens;
        std::vector<float> logprobs;
        for (const Choice& choice : choices) {
            tokens.push_back(choice.token);
            logprobs.push_back(choice.logprob);
        }
        out_.write(tokens);
        out_.write(logprobs);
    }

    Context& context_;
    File &in_, &out_;
    Program program_;
    std::vector<Vector> vectors_;
    std::vector<LinearLayer> layers_;
    std::vector<Table> tables_;
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) {
        std::fprintf(stderr, "usage: replay RECORDING RESULTS ISA THREADS\n");
        return 2;
    }
    try {
        Context context(std::strtoul(arguments[4], nullptr, 10), arguments[3]);
        std::printf("%s\n", context.isa());
        File recording(arguments[1], "rb"), results(arguments[2], "wb");
        Replay(context, recording, results).run();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "replay: %s\n", error.what());
        return 1;
    }
}
