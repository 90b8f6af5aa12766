// `Program`: the operations of a step, recorded once and run without Python between them.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "context.hpp"

namespace rwkv {

// Its methods are those of `Context`, but only record the operation. Instead of activations they take and return registers. During
// `run`, a register holds activations from the operation that computes them to the last one that uses them.
class Program {
public:
    using Register = size_t;

    // See `rwkv::Product`.
    struct Product {
        Register x;
        LinearLayer layer;
        std::optional<Register> add;
        std::optional<std::pair<Register, Register>> blend;
        std::optional<Register> times;
    };

    Register embed(const Table& table, const Vector& weight, const Vector& bias);
    std::vector<Register> shift_mix(size_t kind, size_t layer, Register x, const Vector& weight, const Vector& bias,
                                    const Vector& mix);
    std::vector<Register> linears(const std::vector<Product>& products);
    Register token_matrix(const Table& table, Register offset, Register x);
    // `inputs` are r, w, k, v, a and g.
    Register wkv7(size_t layer, const std::array<Register, 6>& inputs, const LayerVectors& vectors);
    void head(Register x, const Vector& weight, const Vector& bias, const LinearLayer& head);

    // Outputs of the last head; 0 without one.
    size_t num_logits() const { return num_logits_; }

    // `logits` are [outputs of the step, num_logits()] without gaps.
    void run(Context& context, Step& step, float* logits) const;

private:
    struct Frame;
    struct Operation {
        std::function<void(Frame&)> run;
        std::vector<Register> inputs;
    };

    // Append an operation, whose `run` the caller sets; returns the registers of its results.
    std::vector<Register> append(std::vector<Register> inputs, size_t num_results);

    std::vector<Operation> operations_;
    std::vector<size_t> num_uses_;  // of each register as an input
    size_t num_logits_ = 0;
};

}  // namespace rwkv
