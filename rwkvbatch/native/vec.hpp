// F16: a virtual vector of sixteen floats, in which all arithmetic on rows is written.
//
// Every instruction set computes the same IEEE operation in each lane (add, multiply, divide, fused multiply-add), so code in terms
// of F16 has the same bits on all of them. This header is compiled once per instruction set, in the namespace of that set; do not
// use it outside.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(RWKV_ISA_AVX2) || defined(RWKV_ISA_AVX512)
#include <immintrin.h>
#endif

#include "halves.hpp"

#define RWKV_INLINE inline __attribute__((always_inline))

#if defined(RWKV_ISA_NEON)
#include "neon.hpp"
#endif

namespace rwkv {
namespace RWKV_ISA {

constexpr size_t LANES = 16;

#if defined(RWKV_ISA_AVX512)

struct F16 { __m512 v; };
struct I16 { __m512i v; };
struct M16 { __mmask16 v; };

RWKV_INLINE F16 zero() { return {_mm512_setzero_ps()}; }
RWKV_INLINE F16 set1(float x) { return {_mm512_set1_ps(x)}; }
RWKV_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
RWKV_INLINE void store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
RWKV_INLINE __mmask16 first_lanes(size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
RWKV_INLINE F16 load_first(const float* p, size_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
RWKV_INLINE void store_first(float* p, F16 x, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
RWKV_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
RWKV_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
RWKV_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
RWKV_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
RWKV_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
RWKV_INLINE F16 greater(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
RWKV_INLINE M16 operator<(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
RWKV_INLINE M16 operator>=(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
RWKV_INLINE M16 unordered(F16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
RWKV_INLINE F16 select(M16 m, F16 yes, F16 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
RWKV_INLINE uint32_t bitmask(M16 m) { return m.v; }
RWKV_INLINE I16 bits(F16 x) { return {_mm512_castps_si512(x.v)}; }
RWKV_INLINE F16 from_bits(I16 x) { return {_mm512_castsi512_ps(x.v)}; }
RWKV_INLINE I16 set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
RWKV_INLINE I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
RWKV_INLINE I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
RWKV_INLINE I16 operator^(I16 a, I16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N> RWKV_INLINE I16 shift_left(I16 x) { return {_mm512_slli_epi32(x.v, N)}; }
template <int N> RWKV_INLINE I16 shift_right(I16 x) { return {_mm512_srli_epi32(x.v, N)}; }
RWKV_INLINE I16 load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
RWKV_INLINE void store(uint32_t* p, I16 x) { _mm512_storeu_si512(p, x.v); }
RWKV_INLINE F16 from_int(I16 x) { return {_mm512_cvtepi32_ps(x.v)}; }
// Interleave the bytes of two vectors: the low, or the high, halves of each 16 bytes.
RWKV_INLINE I16 zip_low(I16 a, I16 b) { return {_mm512_unpacklo_epi8(a.v, b.v)}; }
RWKV_INLINE I16 zip_high(I16 a, I16 b) { return {_mm512_unpackhi_epi8(a.v, b.v)}; }
// Both halves of the 64-bit products of sixteen 32-bit pairs.
RWKV_INLINE void multiply_wide(I16 a, I16 b, I16& high, I16& low) {
    const __m512i even = _mm512_mul_epu32(a.v, b.v);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
    high.v = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    low.v = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}
// The tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1.
RWKV_INLINE float sum_lanes(F16 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
RWKV_INLINE float greatest_lane(F16 x) { return _mm512_reduce_max_ps(x.v); }
// bf16 weights are stored in pairs: 32-bit word i has column i in its low half and column i + 8 in its high half.
RWKV_INLINE F16 widen_bf16(const uint16_t* p) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i low = _mm256_slli_epi32(words, 16);
    const __m256i high = _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1))};
}
RWKV_INLINE F16 widen_fp16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
RWKV_INLINE F16 widen_int8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

#elif defined(RWKV_ISA_AVX2)

struct F16 { __m256 a, b; };
struct I16 { __m256i a, b; };
struct M16 { __m256 a, b; };

RWKV_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
RWKV_INLINE F16 set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
RWKV_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
RWKV_INLINE void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
RWKV_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RWKV_INLINE F16 load_first(const float* p, size_t n) {
    const int count = static_cast<int>(n);
    return {_mm256_maskload_ps(p, first_lanes(count)), _mm256_maskload_ps(p + 8, first_lanes(count - 8))};
}
RWKV_INLINE void store_first(float* p, F16 x, size_t n) {
    const int count = static_cast<int>(n);
    _mm256_maskstore_ps(p, first_lanes(count), x.a);
    _mm256_maskstore_ps(p + 8, first_lanes(count - 8), x.b);
}
RWKV_INLINE F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
RWKV_INLINE F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
RWKV_INLINE F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
RWKV_INLINE F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
RWKV_INLINE F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
RWKV_INLINE F16 greater(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
RWKV_INLINE M16 operator<(F16 x, F16 y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
RWKV_INLINE M16 operator>=(F16 x, F16 y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)};
}
RWKV_INLINE M16 unordered(F16 x) {
    return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
RWKV_INLINE F16 select(M16 m, F16 yes, F16 no) {
    return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
RWKV_INLINE uint32_t bitmask(M16 m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
RWKV_INLINE I16 bits(F16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
RWKV_INLINE F16 from_bits(I16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
RWKV_INLINE I16 set1(uint32_t x) { const __m256i v = _mm256_set1_epi32(static_cast<int>(x)); return {v, v}; }
RWKV_INLINE I16 operator+(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
RWKV_INLINE I16 operator&(I16 x, I16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
RWKV_INLINE I16 operator^(I16 x, I16 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int N> RWKV_INLINE I16 shift_left(I16 x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> RWKV_INLINE I16 shift_right(I16 x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
RWKV_INLINE I16 load(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
RWKV_INLINE void store(uint32_t* p, I16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
RWKV_INLINE F16 from_int(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
RWKV_INLINE I16 zip_low(I16 x, I16 y) { return {_mm256_unpacklo_epi8(x.a, y.a), _mm256_unpacklo_epi8(x.b, y.b)}; }
RWKV_INLINE I16 zip_high(I16 x, I16 y) { return {_mm256_unpackhi_epi8(x.a, y.a), _mm256_unpackhi_epi8(x.b, y.b)}; }
RWKV_INLINE void multiply_wide(__m256i a, __m256i b, __m256i& high, __m256i& low) {
    const __m256i even = _mm256_mul_epu32(a, b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}
RWKV_INLINE void multiply_wide(I16 x, I16 y, I16& high, I16& low) {
    multiply_wide(x.a, y.a, high.a, low.a);
    multiply_wide(x.b, y.b, high.b, low.b);
}
RWKV_INLINE float sum_lanes(F16 x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
RWKV_INLINE float greatest_lane(F16 x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
RWKV_INLINE F16 widen_bf16(const uint16_t* p) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
RWKV_INLINE F16 widen_fp16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
RWKV_INLINE F16 widen_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

#elif !defined(RWKV_ISA_NEON)  // portable: plain loops, which the compiler may vectorise

struct F16 { float v[LANES]; };
struct I16 { uint32_t v[LANES]; };
struct M16 { uint32_t v; };

#define RWKV_EACH for (size_t i = 0; i < LANES; ++i)
RWKV_INLINE F16 set1(float x) { F16 r; RWKV_EACH r.v[i] = x; return r; }
RWKV_INLINE F16 zero() { return set1(0.0f); }
RWKV_INLINE F16 load(const float* p) { F16 r; std::memcpy(r.v, p, sizeof r.v); return r; }
RWKV_INLINE void store(float* p, F16 x) { std::memcpy(p, x.v, sizeof x.v); }
RWKV_INLINE F16 load_first(const float* p, size_t n) { F16 r = zero(); std::memcpy(r.v, p, n * sizeof(float)); return r; }
RWKV_INLINE void store_first(float* p, F16 x, size_t n) { std::memcpy(p, x.v, n * sizeof(float)); }
RWKV_INLINE F16 operator+(F16 a, F16 b) { F16 r; RWKV_EACH r.v[i] = a.v[i] + b.v[i]; return r; }
RWKV_INLINE F16 operator-(F16 a, F16 b) { F16 r; RWKV_EACH r.v[i] = a.v[i] - b.v[i]; return r; }
RWKV_INLINE F16 operator*(F16 a, F16 b) { F16 r; RWKV_EACH r.v[i] = a.v[i] * b.v[i]; return r; }
RWKV_INLINE F16 operator/(F16 a, F16 b) { F16 r; RWKV_EACH r.v[i] = a.v[i] / b.v[i]; return r; }
RWKV_INLINE F16 fma(F16 a, F16 b, F16 c) { F16 r; RWKV_EACH r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]); return r; }
RWKV_INLINE F16 greater(F16 a, F16 b) { F16 r; RWKV_EACH r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
RWKV_INLINE M16 operator<(F16 a, F16 b) { M16 m{0}; RWKV_EACH m.v |= uint32_t(a.v[i] < b.v[i]) << i; return m; }
RWKV_INLINE M16 operator>=(F16 a, F16 b) { M16 m{0}; RWKV_EACH m.v |= uint32_t(a.v[i] >= b.v[i]) << i; return m; }
RWKV_INLINE M16 unordered(F16 a) { M16 m{0}; RWKV_EACH m.v |= uint32_t(a.v[i] != a.v[i]) << i; return m; }
RWKV_INLINE F16 select(M16 m, F16 yes, F16 no) { F16 r; RWKV_EACH r.v[i] = m.v >> i & 1 ? yes.v[i] : no.v[i]; return r; }
RWKV_INLINE uint32_t bitmask(M16 m) { return m.v; }
RWKV_INLINE I16 bits(F16 x) { I16 r; std::memcpy(r.v, x.v, sizeof r.v); return r; }
RWKV_INLINE F16 from_bits(I16 x) { F16 r; std::memcpy(r.v, x.v, sizeof r.v); return r; }
RWKV_INLINE I16 set1(uint32_t x) { I16 r; RWKV_EACH r.v[i] = x; return r; }
RWKV_INLINE I16 operator+(I16 a, I16 b) { I16 r; RWKV_EACH r.v[i] = a.v[i] + b.v[i]; return r; }
RWKV_INLINE I16 operator&(I16 a, I16 b) { I16 r; RWKV_EACH r.v[i] = a.v[i] & b.v[i]; return r; }
RWKV_INLINE I16 operator^(I16 a, I16 b) { I16 r; RWKV_EACH r.v[i] = a.v[i] ^ b.v[i]; return r; }
template <int N> RWKV_INLINE I16 shift_left(I16 x) { I16 r; RWKV_EACH r.v[i] = x.v[i] << N; return r; }
template <int N> RWKV_INLINE I16 shift_right(I16 x) { I16 r; RWKV_EACH r.v[i] = x.v[i] >> N; return r; }
RWKV_INLINE I16 load(const uint32_t* p) { I16 r; std::memcpy(r.v, p, sizeof r.v); return r; }
RWKV_INLINE void store(uint32_t* p, I16 x) { std::memcpy(p, x.v, sizeof x.v); }
RWKV_INLINE F16 from_int(I16 x) { F16 r; RWKV_EACH r.v[i] = static_cast<float>(static_cast<int32_t>(x.v[i])); return r; }
template <size_t FIRST> RWKV_INLINE I16 zip(I16 a, I16 b) {
    uint8_t a_bytes[LANES * 4], b_bytes[LANES * 4], bytes[LANES * 4];
    std::memcpy(a_bytes, a.v, sizeof a_bytes);
    std::memcpy(b_bytes, b.v, sizeof b_bytes);
    for (size_t i = 0; i < LANES * 4; ++i) bytes[i] = (i % 2 == 0 ? a_bytes : b_bytes)[i / 16 * 16 + FIRST + i % 16 / 2];
    I16 r;
    std::memcpy(r.v, bytes, sizeof bytes);
    return r;
}
RWKV_INLINE I16 zip_low(I16 a, I16 b) { return zip<0>(a, b); }
RWKV_INLINE I16 zip_high(I16 a, I16 b) { return zip<8>(a, b); }
RWKV_INLINE void multiply_wide(I16 a, I16 b, I16& high, I16& low) {
    RWKV_EACH {
        const uint64_t product = uint64_t(a.v[i]) * b.v[i];
        high.v[i] = static_cast<uint32_t>(product >> 32);
        low.v[i] = static_cast<uint32_t>(product);
    }
}
RWKV_INLINE float sum_lanes(F16 x) {
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; ++i) x.v[i] = x.v[i] + x.v[i + half];
    return x.v[0];
}
RWKV_INLINE float greatest_lane(F16 x) {
    float greatest = x.v[0];
    RWKV_EACH greatest = x.v[i] > greatest ? x.v[i] : greatest;
    return greatest;
}
RWKV_INLINE F16 widen_bf16(const uint16_t* p) {
    I16 r;
    for (size_t i = 0; i < 8; ++i) {
        r.v[i] = static_cast<uint32_t>(p[2 * i]) << 16;
        r.v[i + 8] = static_cast<uint32_t>(p[2 * i + 1]) << 16;
    }
    return from_bits(r);
}
RWKV_INLINE F16 widen_fp16(const uint16_t* p) { F16 r; RWKV_EACH r.v[i] = half_to_float(p[i]); return r; }
RWKV_INLINE F16 widen_int8(const int8_t* p) { F16 r; RWKV_EACH r.v[i] = static_cast<float>(p[i]); return r; }
#undef RWKV_EACH

#endif

// Load the first `n` lanes from p, at most all; the others are zero.
RWKV_INLINE F16 load_upto(const float* p, size_t n) { return n >= LANES ? load(p) : load_first(p, n); }
RWKV_INLINE void store_upto(float* p, F16 x, size_t n) {
    if (n >= LANES) store(p, x);
    else store_first(p, x, n);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
