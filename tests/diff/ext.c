/* Extended state in the differential: which instructions, how the state gets into the engine and out, what has to be equal. */
#include <stdio.h>
#include <string.h>
#include "diff.h"
#include "x86/x86.h"

/* Components that both sides load and save: x87, SSE, AVX, opmask and the two ZMM parts (SDM Vol. 1, 13.1). */
#define COMPONENTS 0xe7u
#define XSTATE_BV  512u

/* Standard layout (SDM Vol. 1, 13.4.3; offsets of CPUID leaf 0DH, the same on all processors). */
static const struct component {
  const char *name;
  u16 at, size; /* of one register */
  u8 n, bit;
} components[] = {
    {"st", 32, 16, 8, 0}, {"xmm", 160, 16, 16, 1},   {"ymmh", 576, 16, 16, 2},
    {"k", 1088, 8, 8, 5}, {"zmmh", 1152, 32, 16, 6}, {"zmm", 1664, 64, 16, 7},
};

/* Not here: instructions on system state (XSETBV, XSAVES), and XGETBV, whose XCR0 is the machine's own. */
static const char *const families[ZYDIS_ISA_EXT_MAX_VALUE + 1] = {
    [ZYDIS_ISA_EXT_X87] = "x87",           [ZYDIS_ISA_EXT_MMX] = "mmx",        [ZYDIS_ISA_EXT_SSE] = "sse",
    [ZYDIS_ISA_EXT_SSE2] = "sse",          [ZYDIS_ISA_EXT_SSE3] = "sse",       [ZYDIS_ISA_EXT_SSSE3] = "sse",
    [ZYDIS_ISA_EXT_SSE4] = "sse",          [ZYDIS_ISA_EXT_AES] = "sse",        [ZYDIS_ISA_EXT_SHA] = "sse",
    [ZYDIS_ISA_EXT_PCLMULQDQ] = "sse",     [ZYDIS_ISA_EXT_AVX] = "avx",        [ZYDIS_ISA_EXT_AVX2] = "avx",
    [ZYDIS_ISA_EXT_AVXAES] = "avx",        [ZYDIS_ISA_EXT_AVX2GATHER] = "avx", [ZYDIS_ISA_EXT_AVX_VNNI] = "avx",
    [ZYDIS_ISA_EXT_FMA] = "avx",           [ZYDIS_ISA_EXT_F16C] = "avx",       [ZYDIS_ISA_EXT_VAES] = "avx",
    [ZYDIS_ISA_EXT_VPCLMULQDQ] = "avx",    [ZYDIS_ISA_EXT_GFNI] = "gfni",      [ZYDIS_ISA_EXT_AVX512VEX] = "avx512",
    [ZYDIS_ISA_EXT_AVX512EVEX] = "avx512", [ZYDIS_ISA_EXT_XSAVE] = "xsave",    [ZYDIS_ISA_EXT_XSAVEC] = "xsave",
    [ZYDIS_ISA_EXT_XSAVEOPT] = "xsave",
};

const char *ext_family(const ZydisDecodedInstruction *insn) {
  switch (insn->mnemonic) {
  case ZYDIS_MNEMONIC_XGETBV:
  case ZYDIS_MNEMONIC_XSETBV:
    return NULL;
  case ZYDIS_MNEMONIC_FXSAVE:
  case ZYDIS_MNEMONIC_FXSAVE64:
  case ZYDIS_MNEMONIC_FXRSTOR:
  case ZYDIS_MNEMONIC_FXRSTOR64:
    return "xsave";
  default:
    return families[insn->meta.isa_ext];
  }
}

/* A 32-bit register state has no registers above 7. */
static unsigned registers(const struct component *c, unsigned mode) {
  if (c->bit == 7) return mode == 64 ? 16 : 0;
  return mode == 64 || c->n == 8 ? c->n : 8;
}

/* Components in their initial state may lie in the image as anything: brings both sides to one form. */
static void normalise(u8 *x) {
  u64 bv;
  memcpy(&bv, x + XSTATE_BV, 8);
  for (size_t n = 0; n < ARRAY_SIZE(components); n++)
    if (!(bv >> components[n].bit & 1)) memset(x + components[n].at, 0, (size_t)components[n].size * components[n].n);
  if (!(bv & 1)) {
    memset(x, 0, 24);
    x[0] = 0x7f;
    x[1] = 0x03;
  }
  for (unsigned n = 0; n < 8; n++) memset(x + 32 + 16 * n + 10, 0, 6); /* above the 80 bits: reserved */
}

/* MXCSR by hand: XRSTOR loads it also where SSE is in its initial state, KVM_SET_XSAVE does not. */
void ext_load(struct x86_vcpu *c, const struct diff_state *s) {
  x86_fpu_from_xsave(c, s->xsave, sizeof(s->xsave));
  memcpy(&c->fpu.mxcsr, s->xsave + 24, 4);
}

void ext_save(struct x86_vcpu *c, struct diff_state *s) {
  memset(s->xsave, 0, sizeof(s->xsave));
  x86_fpu_to_xsave(c, s->xsave, sizeof(s->xsave), COMPONENTS);
  memcpy(s->xsave + 24, &c->fpu.mxcsr, 4);
}

bool ext_equal(const struct diff_case *k, struct diff_state *h, struct diff_state *e) {
  normalise(h->xsave);
  normalise(e->xsave);
  if (memcmp(h->xsave, e->xsave, 28)) return false; /* FCW to MXCSR */
  for (size_t n = 0; n < ARRAY_SIZE(components); n++) {
    const struct component *c = &components[n];
    if (memcmp(h->xsave + c->at, e->xsave + c->at, (size_t)c->size * registers(c, k->mode))) return false;
  }
  return true;
}

static void print_bytes(const char *who, const u8 *p, unsigned n) {
  printf(" %s ", who);
  while (n--) printf("%02x", p[n]);
}

/* What the vector registers among the operands held: the low 128 bits. */
static void report_operands(const struct diff_case *k) {
  for (unsigned n = 0; n < k->insn.operand_count; n++) {
    ZydisRegister r = k->ops[n].reg.value;
    unsigned id = (unsigned)ZydisRegisterGetId(r);
    if (k->ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER || r < ZYDIS_REGISTER_XMM0 || r > ZYDIS_REGISTER_ZMM31) continue;
    printf("    operand %s", ZydisRegisterGetString(r));
    print_bytes("in", k->in.xsave + (id < 16 ? 160 + 16 * id : 1664 + 64 * (id - 16)), 16);
    printf("\n");
  }
}

void ext_report(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  static const struct {
    const char *name;
    u8 at, size;
  } legacy[] = {{"fcw", 0, 2}, {"fsw", 2, 2}, {"ftw", 4, 1}, {"fop", 6, 2}, {"fip", 8, 8}, {"fdp", 16, 8}, {"mxcsr", 24, 4}};
  const u8 *in = k->in.xsave;
  report_operands(k);
  for (size_t n = 0; n < ARRAY_SIZE(legacy); n++) {
    const u8 at = legacy[n].at, size = legacy[n].size;
    bool differs = memcmp(h->xsave + at, e->xsave + at, size);
    printf("    %s", legacy[n].name);
    print_bytes("in", in + at, size);
    if (differs) print_bytes(diff_side[0], h->xsave + at, size), print_bytes(diff_side[1], e->xsave + at, size);
    printf("\n");
  }
  for (size_t n = 0; n < ARRAY_SIZE(components); n++)
    for (unsigned r = 0; r < registers(&components[n], k->mode); r++) {
      unsigned at = components[n].at + r * components[n].size;
      if (!memcmp(h->xsave + at, e->xsave + at, components[n].size)) continue;
      printf("    %s%u:", components[n].name, r);
      print_bytes("in", in + at, components[n].size);
      printf("\n       ");
      print_bytes(diff_side[0], h->xsave + at, components[n].size);
      printf("\n       ");
      print_bytes(diff_side[1], e->xsave + at, components[n].size);
      printf("\n");
    }
}
