/* What the flags of a run with masked exceptions do not tell: whether results beside an overflow are exact, and whether a
 * half-precision result is tiny.  Both show only when overflow or underflow is unmasked (SDM Vol. 1 4.9.1.4, 4.9.1.5).
 *
 * Instructions are found by their names, which are regular: operation, then type.
 */
#include <limits.h>
#include <string.h>
#include "x86/exec/vector.h"

/* ---- operations ---- */

enum operation {
  OP_NONE,
  OP_DOT,
  OP_ADD,
  OP_SUB,
  OP_ADDSUB,
  OP_HADD,
  OP_HSUB,
  OP_MUL,
  OP_DIV,
  OP_FMA,
  OP_SCALE,
  OP_CONVERT,
  OP_COMPLEX
};

static const struct {
  const char *name;
  u8 op;
} operations[] = {
    {"addsub", OP_ADDSUB},  {"add", OP_ADD},        {"sub", OP_SUB},         {"hadd", OP_HADD},   {"hsub", OP_HSUB},
    {"mul", OP_MUL},        {"div", OP_DIV},        {"scalef", OP_SCALE},    {"cvt", OP_CONVERT}, {"fmulc", OP_COMPLEX},
    {"fcmulc", OP_COMPLEX}, {"fmaddc", OP_COMPLEX}, {"fcmaddc", OP_COMPLEX}, {"dp", OP_DOT},      {"fmadd", OP_FMA},
    {"fmsub", OP_FMA},      {"fnmadd", OP_FMA},     {"fnmsub", OP_FMA},
};

/* Formats: number of significant bits (with the hidden one), exponent bits; integers have none. */
struct format {
  const char *name;
  u8 size, precision, exponent;
  bool is_signed;
};
static const struct format formats[] = {
    {"ph", 2, 11, 5},
    {"sh", 2, 11, 5},
    {"ps", 4, 24, 8},
    {"ss", 4, 24, 8},
    {"pd", 8, 53, 11},
    {"sd", 8, 53, 11},
    {"udq", 4},
    {"uqq", 8},
    {"usi", 8},
    {"uw", 2},
    {"dq", 4, .is_signed = true},
    {"qq", 8, .is_signed = true},
    {"si", 8, .is_signed = true},
    {"w", 2, .is_signed = true},
};

struct arithmetic {
  u8 op;
  u16 order; /* of a fused operation: 132, 213 or 231 */
  bool scalar;
  const struct format *from, *to;
};

static const struct format *format_at(const char *name) {
  for (size_t k = 0; k < ARRAY_SIZE(formats); k++)
    if (!strncmp(name, formats[k].name, strlen(formats[k].name))) return &formats[k];
  return NULL;
}

/* "cvt[t]<from>2<to>" */
static void parse_conversion(const char *name, struct arithmetic *a) {
  const char *two = strchr(name, '2');
  a->from = format_at(name);
  a->to = two ? format_at(two + 1) : NULL;
  if (!a->from || !a->to || !a->to->exponent) a->op = OP_NONE;
}

static struct arithmetic parse(unsigned mnemonic) {
  struct arithmetic a = {.op = OP_NONE};
  const char *name = ZydisMnemonicGetString((ZydisMnemonic)mnemonic), *end = name + strlen(name);
  if (*name == 'v') name++;
  for (size_t k = 0; k < ARRAY_SIZE(operations) && a.op == OP_NONE; k++) {
    size_t n = strlen(operations[k].name);
    if (strncmp(name, operations[k].name, n)) continue;
    a.op = operations[k].op;
    name += n;
  }
  if (a.op == OP_CONVERT) {
    parse_conversion(name, &a);
  } else if (a.op != OP_NONE) {
    a.from = a.to = format_at(end - 2);
    if (a.op == OP_FMA) a.order = (u16)((end[-5] - '0') * 100 + (end[-4] - '0') * 10 + (end[-3] - '0'));
    if (!a.from) a.op = OP_NONE;
  }
  a.scalar = a.op != OP_NONE && a.to->name[0] == 's';
  return a;
}

/* ---- elements ---- */

static u64 element(const void *p, unsigned size, unsigned n) {
  u64 v = 0;
  memcpy(&v, (const u8 *)p + size * n, size);
  return v;
}

/* The opmask's bits for the first `count` elements. */
static u64 selected(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, unsigned count) {
  u64 bits = ~0ull;
  if (v->opmask) memcpy(&bits, x86_vector_operand(c, i, ROLE_FOURTH), 8);
  return count >= 64 ? bits : bits & (BIT(count) - 1);
}

/* ---- tiny results ---- */

bool x86_vector_underflows(const struct x86_vector *v) {
  return parse(v->mnemonic).op != OP_NONE;
}

bool x86_vector_tiny_half(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, const void *result) {
  struct arithmetic a = parse(v->mnemonic);
  if (a.op == OP_NONE || a.to->precision != 11) return false;
  unsigned count = a.scalar ? 1 : v->elements;
  u64 bits = selected(c, i, v, count);
  if (a.op == OP_COMPLEX) { /* a bit for each pair */
    u64 pairs = 0;
    count *= 2;
    for (unsigned n = 0; n < count; n++) pairs |= (bits >> (n / 2) & 1) << n;
    bits = pairs;
  }
  for (unsigned n = 0; n < count; n++) {
    u64 x = element(result, 2, n);
    if ((bits >> n & 1) && !(x & 0x7c00) && (x & 0x3ff)) return true;
  }
  return false;
}

/* ---- exact results ---- */

typedef unsigned __int128 u128;

/* (-1)^negative * m * 2^exponent */
struct number {
  bool finite, negative;
  int exponent;
  u128 m;
};

static struct number decode_integer(const struct format *f, u64 v) {
  bool negative = f->is_signed && v >> (8 * f->size - 1);
  u64 m = negative ? (0 - v) & (~0ull >> (64 - 8 * f->size)) : v;
  return (struct number){.finite = true, .negative = negative, .m = m};
}

static struct number decode(const struct format *f, u64 v, bool daz) {
  if (!f->exponent) return decode_integer(f, v);
  unsigned mantissa = f->precision - 1u, top = (1u << f->exponent) - 1, e = (unsigned)(v >> mantissa) & top;
  struct number x = {.finite = e != top, .negative = v >> (8 * f->size - 1) & 1, .m = v & (BIT(mantissa) - 1)};
  if (e)
    x.m |= BIT(mantissa);
  else if (daz && f->precision != 11)
    x.m = 0; /* half precision knows no DAZ */
  x.exponent = (int)(e ? e : 1) - (int)(top / 2) - (int)mantissa;
  return x;
}

static unsigned bits_of(u128 m) {
  return m >> 64 ? 128 - (unsigned)__builtin_clzll((u64)(m >> 64)) : m ? 64 - (unsigned)__builtin_clzll((u64)m) : 0;
}

static struct number odd(struct number x) {
  while (x.m && !(x.m & 1)) x.m >>= 1, x.exponent++;
  return x;
}

/* The result's digits: as many as the format has, none below the smallest denormal's unless underflow is unmasked. */
struct digits {
  unsigned count;
  int smallest;
};

static bool representable(struct number x, struct digits d) {
  x = odd(x);
  return !x.m || (bits_of(x.m) <= d.count && x.exponent >= d.smallest);
}

static bool exact_sum(struct number a, struct number b, struct digits d) {
  a = odd(a), b = odd(b);
  if (!a.m) return representable(b, d);
  if (!b.m) return representable(a, d);
  struct number high = a.exponent >= b.exponent ? a : b, low = a.exponent >= b.exponent ? b : a;
  unsigned apart = (unsigned)(high.exponent - low.exponent);
  if (apart + bits_of(high.m) > 126)
    return false; /* the lowest digit of the sum is low's, the highest is high's or its neighbour */
  high.m <<= apart;
  high.exponent = low.exponent;
  if (high.negative == low.negative)
    high.m += low.m;
  else
    high.m = high.m > low.m ? high.m - low.m : low.m - high.m;
  return representable(high, d);
}

static struct number product(struct number a, struct number b) {
  return (struct number){
      .finite = a.finite && b.finite, .negative = a.negative != b.negative, .exponent = a.exponent + b.exponent, .m = a.m * b.m};
}

static bool exact_quotient(struct number a, struct number b, struct digits d) {
  b = odd(b);
  if (!b.m || !a.m) return true;
  return !(a.m % b.m) && representable((struct number){.exponent = a.exponent - b.exponent, .m = a.m / b.m}, d);
}

/* a * 2^floor(b) */
static bool exact_scaling(struct number a, struct number b, struct digits d) {
  if (b.exponent > 12 || (int)bits_of(b.m) + b.exponent > 20)
    return !b.negative || !a.m || d.smallest == INT_MIN; /* far beyond the format */
  long whole = b.exponent >= 0 ? (long)(b.m << b.exponent) : b.exponent < -63 ? 0 : (long)(b.m >> -b.exponent);
  bool fraction = b.m && (b.exponent < -63 || (b.exponent < 0 && (b.m & ((u128)-1 >> (128 + b.exponent)))));
  a.exponent += (int)(b.negative ? -whole - fraction : whole);
  return representable(a, d);
}

/* ---- by operation ---- */

struct operands {
  struct arithmetic a;
  const void *reg, *rm, *vvvv; /* as the encoding has them */
  bool two;                    /* legacy form: the destination is the first source */
  bool broadcast, daz;
  bool f16c; /* VCVTPS2PH */
  struct digits digits;
};

static struct number source(const struct operands *o, const void *from, unsigned n) {
  return decode(o->a.from, element(from, o->a.from->size, from == o->rm && o->broadcast ? 0 : n), o->daz);
}
static struct number first(const struct operands *o, unsigned n) {
  return source(o, o->two ? o->reg : o->vvvv, n);
}
static struct number second(const struct operands *o, unsigned n) {
  return source(o, o->rm, n);
}

static bool denormal(struct number single) { return single.finite && single.m && !(single.m >> 23); }

static struct number negated(struct number x) {
  x.negative = !x.negative;
  return x;
}

/* HADD and HSUB: in each 128-bit lane first the pairs of the first source, then those of the second. */
static bool exact_pair(const struct operands *o, unsigned n, bool subtract) {
  unsigned per_lane = 16u / o->a.from->size, lane = n / per_lane * per_lane, k = n % per_lane, from = lane + 2 * k % per_lane;
  const void *p = k < per_lane / 2 ? (o->two ? o->reg : o->vvvv) : o->rm;
  struct number a = source(o, p, from), b = source(o, p, from + 1);
  return !a.finite || !b.finite || exact_sum(a, subtract ? negated(b) : b, o->digits);
}

/* 132: reg * rm + vvvv; 213: vvvv * reg + rm; 231: vvvv * rm + reg.  Signs by name. */
static bool exact_fused(const struct operands *o, unsigned n, const char *name) {
  struct number reg = source(o, o->reg, n), rm = second(o, n), vvvv = source(o, o->vvvv, n);
  struct number p = o->a.order == 132 ? product(reg, rm) : o->a.order == 213 ? product(vvvv, reg) : product(vvvv, rm);
  struct number c = o->a.order == 132 ? vvvv : o->a.order == 213 ? rm : reg;
  bool minus = strstr(name, "fmaddsub") ? !(n & 1) : strstr(name, "fmsubadd") ? n & 1 : strstr(name, "msub") != NULL;
  if (!p.finite || !c.finite) return true;
  return exact_sum(strstr(name, "fnm") ? negated(p) : p, minus ? negated(c) : c, o->digits);
}

static bool exact_element(const struct operands *o, unsigned n, const char *name) {
  if (o->a.op == OP_FMA) return exact_fused(o, n, name);
  if (o->a.op == OP_HADD || o->a.op == OP_HSUB) return exact_pair(o, n, o->a.op == OP_HSUB);
  struct number b = second(o, n);
  if (o->f16c && denormal(b)) return false; /* as processors do it */
  if (o->a.op == OP_CONVERT) return !b.finite || representable(b, o->digits);
  struct number a = first(o, n);
  if (!a.finite || !b.finite) return true;
  switch (o->a.op) {
  case OP_ADD:
    return exact_sum(a, b, o->digits);
  case OP_SUB:
    return exact_sum(a, negated(b), o->digits);
  case OP_ADDSUB:
    return exact_sum(a, n & 1 ? b : negated(b), o->digits);
  case OP_MUL:
    return representable(product(a, b), o->digits);
  case OP_DIV:
    return exact_quotient(a, b, o->digits);
  case OP_SCALE:
    return exact_scaling(a, b, o->digits);
  default:
    return false;
  }
}

bool x86_vector_exact(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *const operand[ROLE_COUNT]) {
  struct operands o = {.a = parse(v->mnemonic),
                       .reg = operand[ROLE_REG],
                       .rm = operand[ROLE_RM],
                       .vvvv = operand[ROLE_VVVV],
                       .two = v->class == VECTOR_SSE,
                       .broadcast = v->broadcast,
                       .daz = c->fpu.mxcsr & 0x40,
                       .f16c = v->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH};
  if (o.a.op == OP_NONE || o.a.op == OP_COMPLEX || o.a.op == OP_DOT) return false;
  bool half = o.a.to->precision == 11;
  if (half && !o.a.from->exponent) return false; /* integers too large for half precision are always inexact */
  o.digits.count = o.a.to->precision;
  bool bounded = (c->fpu.mxcsr & 0x800) || (half && !o.f16c); /* AVX512-FP16: as processors do it */
  o.digits.smallest = bounded ? 2 - (1 << (o.a.to->exponent - 1)) - (o.a.to->precision - 1) : INT_MIN;
  unsigned count = o.a.scalar ? 1 : v->elements;
  u64 bits = selected(c, i, v, count);
  if (o.a.op == OP_CONVERT && v->dest == ROLE_RM) o.rm = operand[ROLE_REG]; /* VCVTPS2PH stores to ModRM.rm */
  for (unsigned n = 0; n < count; n++)
    if ((bits >> n & 1) && !exact_element(&o, n, ZydisMnemonicGetString((ZydisMnemonic)v->mnemonic))) return false;
  return true;
}
