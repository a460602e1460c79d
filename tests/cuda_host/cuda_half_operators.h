// What __half and __nv_bfloat16 have in common: included once for each, with TYPE, RAW, PAIR, NARROW and WIDEN
// defined.
//
// Every operation is computed in float and rounded once. That is the correctly rounded result for + - * / and sqrt, as
// float has more than twice the digits; a fused multiply-add goes through a double that is rounded to odd.

#define TILESMITH_OPERATOR(OP)                                                                                  \
    inline TYPE operator OP(TYPE a, TYPE b) { return NARROW(WIDEN(a) OP WIDEN(b)); }                            \
    inline TYPE& operator OP##=(TYPE& a, TYPE b) { return a = a OP b; }                                         \
    inline PAIR operator OP(PAIR a, PAIR b) { return PAIR(a.x OP b.x, a.y OP b.y); }                            \
    inline PAIR& operator OP##=(PAIR& a, PAIR b) { return a = a OP b; }
TILESMITH_OPERATOR(+)
TILESMITH_OPERATOR(-)
TILESMITH_OPERATOR(*)
TILESMITH_OPERATOR(/)
#undef TILESMITH_OPERATOR
inline TYPE operator+(TYPE a) { return a; }
inline TYPE operator-(TYPE a) { return TYPE(RAW{(unsigned short)(RAW(a).x ^ 0x8000u)}); }
inline PAIR operator-(PAIR a) { return PAIR(-a.x, -a.y); }

#define TILESMITH_COMPARISON(NAME, OP)                                                     \
    inline bool operator OP(TYPE a, TYPE b) { return WIDEN(a) OP WIDEN(b); }               \
    inline bool __h##NAME(TYPE a, TYPE b) { return a OP b; }                               \
    inline PAIR __h##NAME##2(PAIR a, PAIR b) { return PAIR(NARROW(float(a.x OP b.x)), NARROW(float(a.y OP b.y))); }
TILESMITH_COMPARISON(eq, ==)
TILESMITH_COMPARISON(ne, !=)
TILESMITH_COMPARISON(lt, <)
TILESMITH_COMPARISON(le, <=)
TILESMITH_COMPARISON(gt, >)
TILESMITH_COMPARISON(ge, >=)
#undef TILESMITH_COMPARISON

#define TILESMITH_BINARY(NAME, VALUE)                              \
    inline TYPE NAME(TYPE a, TYPE b) { return VALUE; }             \
    inline PAIR NAME##2(PAIR a, PAIR b) { return PAIR(NAME(a.x, b.x), NAME(a.y, b.y)); }
TILESMITH_BINARY(__hadd, a + b)
TILESMITH_BINARY(__hsub, a - b)
TILESMITH_BINARY(__hmul, a* b)
TILESMITH_BINARY(__hmax, NARROW(max(WIDEN(a), WIDEN(b))))
TILESMITH_BINARY(__hmin, NARROW(min(WIDEN(a), WIDEN(b))))
#undef TILESMITH_BINARY
inline TYPE __hadd_rn(TYPE a, TYPE b) { return a + b; }
inline TYPE __hsub_rn(TYPE a, TYPE b) { return a - b; }
inline TYPE __hmul_rn(TYPE a, TYPE b) { return a * b; }
inline TYPE __hdiv(TYPE a, TYPE b) { return a / b; }
inline PAIR __h2div(PAIR a, PAIR b) { return a / b; }
inline TYPE __hmax_nan(TYPE a, TYPE b) { return WIDEN(a) != WIDEN(a) || WIDEN(b) != WIDEN(b) ? NARROW(NAN) : __hmax(a, b); }
inline TYPE __hmin_nan(TYPE a, TYPE b) { return WIDEN(a) != WIDEN(a) || WIDEN(b) != WIDEN(b) ? NARROW(NAN) : __hmin(a, b); }
inline TYPE __hfma(TYPE a, TYPE b, TYPE c) {
    return NARROW(tilesmith_host::narrow_to_odd(tilesmith_host::fma_to_odd(WIDEN(a), WIDEN(b), WIDEN(c))));
}
inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) { return PAIR(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
inline TYPE __hfma_relu(TYPE a, TYPE b, TYPE c) { return __hmax_nan(__hfma(a, b, c), NARROW(0.0f)); }
inline TYPE __habs(TYPE a) { return TYPE(RAW{(unsigned short)(RAW(a).x & 0x7fffu)}); }
inline PAIR __habs2(PAIR a) { return PAIR(__habs(a.x), __habs(a.y)); }
inline TYPE __hneg(TYPE a) { return -a; }
inline PAIR __hneg2(PAIR a) { return -a; }
inline bool __hisnan(TYPE a) { return WIDEN(a) != WIDEN(a); }
inline int __hisinf(TYPE a) { return ::isinf(WIDEN(a)) ? (WIDEN(a) < 0.0f ? -1 : 1) : 0; }

#define TILESMITH_FUNCTION(NAME, VALUE)               \
    inline TYPE h##NAME(TYPE a) {                     \
        const float x = WIDEN(a);                     \
        return NARROW(VALUE);                         \
    }                                                 \
    inline PAIR h2##NAME(PAIR a) { return PAIR(h##NAME(a.x), h##NAME(a.y)); }
TILESMITH_FUNCTION(exp, ::expf(x))
TILESMITH_FUNCTION(exp2, ::exp2f(x))
TILESMITH_FUNCTION(log, ::logf(x))
TILESMITH_FUNCTION(log2, ::log2f(x))
TILESMITH_FUNCTION(sqrt, ::sqrtf(x))
TILESMITH_FUNCTION(rsqrt, rsqrtf(x))
TILESMITH_FUNCTION(rcp, 1.0f / x)
TILESMITH_FUNCTION(sin, ::sinf(x))
TILESMITH_FUNCTION(cos, ::cosf(x))
TILESMITH_FUNCTION(floor, ::floorf(x))
TILESMITH_FUNCTION(ceil, ::ceilf(x))
TILESMITH_FUNCTION(trunc, ::truncf(x))
TILESMITH_FUNCTION(rint, ::nearbyintf(x))
#undef TILESMITH_FUNCTION

inline float __low2float(PAIR a) { return WIDEN(a.x); }
inline float __high2float(PAIR a) { return WIDEN(a.y); }
inline PAIR __lowhigh2highlow(PAIR a) { return PAIR(a.y, a.x); }

TILESMITH_ATOMIC(atomicAdd, TYPE, old + value)
TILESMITH_ATOMIC(atomicAdd, PAIR, old + value)
TILESMITH_SHUFFLES(TYPE)
TILESMITH_SHUFFLES(PAIR)
