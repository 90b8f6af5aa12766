// `F16` of `vec.hpp` as four NEON registers, for every 64-bit ARM processor.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rwkv {
namespace RWKV_ISA {

// Members instead of arrays: GCC 12 keeps an array of vectors in consecutive registers, which needs copies.
struct F16 { float32x4_t a, b, c, d; };
struct I16 { uint32x4_t a, b, c, d; };
struct M16 { uint32x4_t a, b, c, d; };

// Apply `operation` to each register of the vectors.
template <class Result, class Operation, class... Vectors>
RWKV_INLINE Result each(const Operation& operation, const Vectors&... x) {
    return {operation(x.a...), operation(x.b...), operation(x.c...), operation(x.d...)};
}
#define RWKV_OPERATION(parameters, value) [] parameters __attribute__((always_inline)) { return value; }

RWKV_INLINE F16 set1(float x) { const float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
RWKV_INLINE F16 zero() { return set1(0.0f); }
RWKV_INLINE F16 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
RWKV_INLINE void store(float* p, F16 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
RWKV_INLINE F16 load_first(const float* p, size_t n) {
    float lanes[16] = {};
    std::memcpy(lanes, p, n * sizeof(float));
    return load(lanes);
}
RWKV_INLINE void store_first(float* p, F16 x, size_t n) {
    float lanes[16];
    store(lanes, x);
    std::memcpy(p, lanes, n * sizeof(float));
}
RWKV_INLINE F16 operator+(F16 x, F16 y) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vaddq_f32(p, q)), x, y);
}
RWKV_INLINE F16 operator-(F16 x, F16 y) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vsubq_f32(p, q)), x, y);
}
RWKV_INLINE F16 operator*(F16 x, F16 y) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vmulq_f32(p, q)), x, y);
}
RWKV_INLINE F16 operator/(F16 x, F16 y) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vdivq_f32(p, q)), x, y);
}
RWKV_INLINE F16 fma(F16 x, F16 y, F16 z) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q, float32x4_t r), vfmaq_f32(r, p, q)), x, y, z);
}
// The second operand if one is NaN or both are zero; `vmaxq_f32` differs there.
RWKV_INLINE F16 greater(F16 x, F16 y) {
    return each<F16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vbslq_f32(vcgtq_f32(p, q), p, q)), x, y);
}
RWKV_INLINE M16 operator<(F16 x, F16 y) {
    return each<M16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vcltq_f32(p, q)), x, y);
}
RWKV_INLINE M16 operator>=(F16 x, F16 y) {
    return each<M16>(RWKV_OPERATION((float32x4_t p, float32x4_t q), vcgeq_f32(p, q)), x, y);
}
RWKV_INLINE M16 unordered(F16 x) { return each<M16>(RWKV_OPERATION((float32x4_t p), vmvnq_u32(vceqq_f32(p, p))), x); }
RWKV_INLINE F16 select(M16 m, F16 yes, F16 no) {
    return each<F16>(RWKV_OPERATION((uint32x4_t p, float32x4_t q, float32x4_t r), vbslq_f32(p, q, r)), m, yes, no);
}
RWKV_INLINE uint32_t bitmask(M16 m) {
    const int32_t numbers[4] = {0, 1, 2, 3};
    const int32x4_t shifts = vld1q_s32(numbers);
    const auto four = [&](uint32x4_t p) { return vaddvq_u32(vshlq_u32(vshrq_n_u32(p, 31), shifts)); };
    return four(m.a) | four(m.b) << 4 | four(m.c) << 8 | four(m.d) << 12;
}
RWKV_INLINE I16 bits(F16 x) { return each<I16>(RWKV_OPERATION((float32x4_t p), vreinterpretq_u32_f32(p)), x); }
RWKV_INLINE F16 from_bits(I16 x) { return each<F16>(RWKV_OPERATION((uint32x4_t p), vreinterpretq_f32_u32(p)), x); }
RWKV_INLINE I16 set1(uint32_t x) { const uint32x4_t v = vdupq_n_u32(x); return {v, v, v, v}; }
RWKV_INLINE I16 operator+(I16 x, I16 y) {
    return each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vaddq_u32(p, q)), x, y);
}
RWKV_INLINE I16 operator&(I16 x, I16 y) {
    return each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vandq_u32(p, q)), x, y);
}
RWKV_INLINE I16 operator^(I16 x, I16 y) {
    return each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q), veorq_u32(p, q)), x, y);
}
template <int N> RWKV_INLINE I16 shift_left(I16 x) { return each<I16>(RWKV_OPERATION((uint32x4_t p), vshlq_n_u32(p, N)), x); }
template <int N> RWKV_INLINE I16 shift_right(I16 x) { return each<I16>(RWKV_OPERATION((uint32x4_t p), vshrq_n_u32(p, N)), x); }
RWKV_INLINE I16 load(const uint32_t* p) { return {vld1q_u32(p), vld1q_u32(p + 4), vld1q_u32(p + 8), vld1q_u32(p + 12)}; }
RWKV_INLINE void store(uint32_t* p, I16 x) { store(reinterpret_cast<float*>(p), from_bits(x)); }
RWKV_INLINE F16 from_int(I16 x) {
    return each<F16>(RWKV_OPERATION((uint32x4_t p), vcvtq_f32_s32(vreinterpretq_s32_u32(p))), x);
}
// Interleave the bytes of two vectors: the low, or the high, halves of each 16 bytes.
RWKV_INLINE I16 zip_low(I16 x, I16 y) {
    return each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q),
        vreinterpretq_u32_u8(vzip1q_u8(vreinterpretq_u8_u32(p), vreinterpretq_u8_u32(q)))), x, y);
}
RWKV_INLINE I16 zip_high(I16 x, I16 y) {
    return each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q),
        vreinterpretq_u32_u8(vzip2q_u8(vreinterpretq_u8_u32(p), vreinterpretq_u8_u32(q)))), x, y);
}
// Both halves of the 64-bit products of sixteen 32-bit pairs.
RWKV_INLINE void multiply_wide(I16 x, I16 y, I16& high, I16& low) {
    const auto even = RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vreinterpretq_u32_u64(vmull_u32(vget_low_u32(p), vget_low_u32(q))));
    const auto odd = RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vreinterpretq_u32_u64(vmull_high_u32(p, q)));
    const I16 first = each<I16>(even, x, y), second = each<I16>(odd, x, y);
    low = each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vuzp1q_u32(p, q)), first, second);
    high = each<I16>(RWKV_OPERATION((uint32x4_t p, uint32x4_t q), vuzp2q_u32(p, q)), first, second);
}
// The tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1.
RWKV_INLINE float sum_lanes(F16 x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
RWKV_INLINE float greatest_lane(F16 x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
// bf16 weights are stored in pairs: 32-bit word i has column i in its low half and column i + 8 in its high half.
RWKV_INLINE F16 widen_bf16(const uint16_t* p) {
    const uint32x4_t mask = vdupq_n_u32(0xffff0000u);
    const uint32x4_t first = vreinterpretq_u32_u16(vld1q_u16(p)), second = vreinterpretq_u32_u16(vld1q_u16(p + 8));
    return from_bits({vshlq_n_u32(first, 16), vshlq_n_u32(second, 16), vandq_u32(first, mask), vandq_u32(second, mask)});
}
RWKV_INLINE F16 widen_fp16(const uint16_t* p) {
    const float16x8_t first = vreinterpretq_f16_u16(vld1q_u16(p)), second = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {vcvt_f32_f16(vget_low_f16(first)), vcvt_high_f32_f16(first), vcvt_f32_f16(vget_low_f16(second)),
            vcvt_high_f32_f16(second)};
}
RWKV_INLINE F16 widen_int8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t first = vmovl_s8(vget_low_s8(bytes)), second = vmovl_high_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))), vcvtq_f32_s32(vmovl_high_s16(first)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))), vcvtq_f32_s32(vmovl_high_s16(second))};
}

}  // namespace RWKV_ISA
}  // namespace rwkv
