// exp, tanh and sigmoid of F16 from basic operations, so that the bits do not depend on a math library.
#pragma once

#include "kernels.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// e^x: x = n ln 2 + r with |r| <= ln 2 / 2, e^r by the single precision polynomial of the Cephes library (Moshier), 2^n through the
// exponent's bits. Zero below -87.3, infinity from 88.72; the error in between is about one unit in the last place.
RWKV_INLINE F16 exp(F16 x) {
    const F16 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    const F16 shifted = fma(x, set1(1.44269504088896341f), magic);
    const F16 n = shifted - magic;
    F16 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r) + set1(1.0f);
    const F16 scaled = from_bits(bits(p) + shift_left<23>(bits(shifted)));
    F16 result = select(x < set1(-87.3f), zero(), scaled);
    result = select(x >= set1(88.72f), set1(HUGE_VALF), result);
    return select(unordered(x), x, result);
}

RWKV_INLINE F16 sigmoid(F16 x) { return set1(1.0f) / (set1(1.0f) + exp(zero() - x)); }

// Cephes' odd polynomial below 0.625 in magnitude, elsewhere 1 - 2 / (e^2|x| + 1) with the sign of x.
RWKV_INLINE F16 tanh(F16 x) {
    const I16 sign_bit = set1(0x80000000u);
    const I16 sign = bits(x) & sign_bit;
    const F16 size = from_bits(bits(x) ^ sign);
    const F16 large = set1(1.0f) - set1(2.0f) / (exp(size + size) + set1(1.0f));
    const F16 z = x * x;
    F16 p = set1(-5.70498872745e-3f);
    p = fma(p, z, set1(2.06390887954e-2f));
    p = fma(p, z, set1(-5.37397155531e-2f));
    p = fma(p, z, set1(1.33314422036e-1f));
    p = fma(p, z, set1(-3.33332819422e-1f));
    const F16 small = fma(p * z, x, x);
    return select(size < set1(0.625f), small, from_bits(bits(large) ^ sign));
}

RWKV_INLINE F16 relu_squared(F16 x) {
    const F16 positive = greater(zero(), x);  // if x is NaN, the second operand: x
    return positive * positive;
}

RWKV_INLINE F16 activate(F16 x, Activation activation) {
    switch (activation) {
        case Activation::TANH: return tanh(x);
        case Activation::SIGMOID: return sigmoid(x);
        case Activation::DECAY: return exp(set1(-0.60653065971263342f) * sigmoid(x));
        case Activation::RELU_SQUARED: return relu_squared(x);
        default: return x;
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
