#include "program.hpp"

#include <stdexcept>

namespace rwkv {

// The data of a running program.
struct Program::Frame {
    Context& context;
    Step& step;
    float* logits;
    std::vector<ArrayPtr> registers;

    const Array& operator[](Register number) const { return *registers[number]; }
    void put(const std::vector<Register>& numbers, std::vector<ArrayPtr> arrays) {
        for (size_t i = 0; i < numbers.size(); ++i) registers[numbers[i]] = std::move(arrays[i]);
    }
};

std::vector<Program::Register> Program::append(std::vector<Register> inputs, size_t num_results) {
    for (const Register number : inputs)
        if (number >= num_uses_.size()) throw std::invalid_argument("an operation uses a register that no earlier operation sets");
    for (const Register number : inputs) ++num_uses_[number];
    operations_.push_back({nullptr, std::move(inputs)});
    std::vector<Register> results;
    for (size_t i = 0; i < num_results; ++i) results.push_back(num_uses_.size() + i);
    num_uses_.resize(num_uses_.size() + num_results, 0);
    return results;
}

Program::Register Program::embed(const Table& table, const Vector& weight, const Vector& bias) {
    const Register out = append({}, 1)[0];
    operations_.back().run = [=](Frame& frame) {
        frame.registers[out] = frame.context.embed(frame.step, table, weight, bias);
    };
    return out;
}

std::vector<Program::Register> Program::shift_mix(size_t kind, size_t layer, Register x, const Vector& weight,
                                                  const Vector& bias, const Vector& mix) {
    const std::vector<Register> out = append({x}, mix.rows);
    operations_.back().run = [=](Frame& frame) {
        frame.put(out, frame.context.shift_mix(frame.step, kind, layer, frame[x], weight, bias, mix));
    };
    return out;
}

std::vector<Program::Register> Program::linears(const std::vector<Product>& products) {
    std::vector<Register> inputs;
    for (const Product& product : products) {
        inputs.push_back(product.x);
        if (product.add) inputs.push_back(*product.add);
        if (product.blend) inputs.insert(inputs.end(), {product.blend->first, product.blend->second});
        if (product.times) inputs.push_back(*product.times);
    }
    const std::vector<Register> out = append(std::move(inputs), products.size());
    operations_.back().run = [=](Frame& frame) {
        std::vector<rwkv::Product> filled;
        for (const Product& product : products)
            filled.push_back({&frame[product.x], &product.layer, product.add ? &frame[*product.add] : nullptr,
                              product.blend ? &frame[product.blend->first] : nullptr,
                              product.blend   ? &frame[product.blend->second]
                              : product.times ? &frame[*product.times]
                                              : nullptr});
        frame.put(out, frame.context.linears(filled));
    };
    return out;
}

Program::Register Program::token_matrix(const Table& table, Register offset, Register x) {
    const Register out = append({offset, x}, 1)[0];
    operations_.back().run = [=](Frame& frame) {
        frame.registers[out] = frame.context.token_matrix(frame.step, table, frame[offset], frame[x]);
    };
    return out;
}

Program::Register Program::wkv7(size_t layer, const std::array<Register, 6>& inputs, const LayerVectors& vectors) {
    const Register out = append({inputs.begin(), inputs.end()}, 1)[0];
    operations_.back().run = [=](Frame& frame) {
        const auto& [r, w, k, v, a, g] = inputs;
        frame.registers[out] = frame.context.wkv7(frame.step, layer, frame[r], frame[w], frame[k], frame[v], frame[a],
                                                  frame[g], vectors);
    };
    return out;
}

void Program::head(Register x, const Vector& weight, const Vector& bias, const LinearLayer& head) {
    append({x}, 0);
    operations_.back().run = [=](Frame& frame) {
        frame.context.head(frame.step, frame[x], weight, bias, head, frame.logits);
    };
    num_logits_ = head.weight.packed.out;
}

void Program::run(Context& context, Step& step, float* logits) const {
    std::vector<size_t> uses_left = num_uses_;
    Frame frame{context, step, logits, std::vector<ArrayPtr>(num_uses_.size())};
    for (const Operation& operation : operations_) {
        operation.run(frame);
        for (const Register number : operation.inputs)
            if (--uses_left[number] == 0) frame.registers[number].reset();
    }
}

}  // namespace rwkv
