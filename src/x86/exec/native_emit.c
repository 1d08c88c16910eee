/* Makes the stubs: load the registers used, the instruction with its memory operand at [rsi], store the registers written.
 *
 * In a stub: rdi = vCPU, rsi = host address of the memory operand, rdx on entry = where flags go (kept in r8).  A general register operand is moved to rdx:
 * its field in the instruction is rewritten.  Hidden rax, rcx, rdx (PCMPESTRx) are loaded as themselves.
 */
#include <cpuid.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/process.h"
#include "jit/codemem.h"
#include "x86/exec/native.h"

struct code {
  u8 b[512];
  unsigned n;
};

static void put(struct code *e, u8 v) {
  if (e->n < sizeof(e->b)) e->b[e->n] = v;
  e->n++;
}
static void puts_(struct code *e, const u8 *v, unsigned n) {
  while (n--) put(e, *v++);
}
static void disp32(struct code *e, u32 v) { puts_(e, (const u8 *)&v, 4); }

static bool host_avx, host_avx512;
static void host_features(void) {
  unsigned a, b, c, d;
  host_avx = __builtin_cpu_supports("avx2");
  host_avx512 = host_avx && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __get_cpuid_count(7, 0, &a, &b, &c, &d);
}

/* movups xmm, [rdi+disp] and back; the whole register for VEX and EVEX. */
static void move_vector(struct code *e, unsigned n, bool store, bool full) {
  u32 at = (u32)(offsetof(struct x86_vcpu, fpu.zmm) + 64 * n);
  u8 modrm = (u8)(0x87 | (n & 7) << 3);
  if (full && host_avx512) { /* EVEX.512.0F.W0 10/11 */
    put(e, 0x62);
    put(e, (u8)(0x61 | (n & 8 ? 0 : 0x80) | (n & 16 ? 0 : 0x10)));
    put(e, 0x7c);
    put(e, 0x48);
  } else if (full && host_avx) { /* VEX.256.0F */
    put(e, 0xc5);
    put(e, n & 8 ? 0x7c : 0xfc);
  } else {
    if (n & 8) put(e, 0x44);
    put(e, 0x0f);
  }
  put(e, store ? 0x11 : 0x10);
  put(e, modrm);
  disp32(e, at);
}

/* kmovq k, [rdi+disp]: VEX.L0.0F.W1 90/91 */
static void move_mask(struct code *e, unsigned n, bool store) {
  puts_(e, (const u8[]){0xc4, 0xe1, 0xf8, store ? 0x91 : 0x90, (u8)(0x87 | n << 3)}, 5);
  disp32(e, (u32)(offsetof(struct x86_vcpu, fpu.k) + 8 * n));
}

/* mov r64, [rdi+regs[n]] and back */
static void move_general(struct code *e, unsigned host, unsigned guest, bool store) {
  puts_(e, (const u8[]){0x48, store ? 0x89 : 0x8b, (u8)(0x87 | host << 3)}, 3);
  disp32(e, (u32)(offsetof(struct x86_vcpu, regs) + 8 * guest));
}

/* ldmxcsr/stmxcsr [rdi+fpu.mxcsr] (masked form lies behind it, see native.c) */
static void mxcsr(struct code *e, bool store, u32 at) {
  puts_(e, (const u8[]){0x0f, 0xae, store ? 0x9f : 0x97}, 3);
  disp32(e, at);
}

static ZydisRegisterClass class_of(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(op->reg.value) : ZYDIS_REGCLASS_INVALID;
}
static bool is_vector(ZydisRegisterClass k) { return k == ZYDIS_REGCLASS_XMM || k == ZYDIS_REGCLASS_YMM || k == ZYDIS_REGCLASS_ZMM; }
static bool is_general(ZydisRegisterClass k) { return k == ZYDIS_REGCLASS_GPR64 || k == ZYDIS_REGCLASS_GPR32 || k == ZYDIS_REGCLASS_GPR16 || k == ZYDIS_REGCLASS_GPR8; }

/* The instruction's bytes with [rsi] as memory operand and rdx as explicit general register.  Offsets of ModRM come from Zydis. */
static bool rewrite(const struct x86_decoded *d, bool has_mem, const ZydisDecodedOperand *gpr, u8 *out, unsigned *len) {
  const ZydisDecodedInstruction *in = &d->insn;
  unsigned at = 0, n = 0;
  while (at < in->length) { /* legacy prefixes: segment and address size go */
    u8 p = d->bytes[at];
    if (p != 0x66 && p != 0xf2 && p != 0xf3 && p != 0x26 && p != 0x2e && p != 0x36 && p != 0x3e && p != 0x64 && p != 0x65 && p != 0x67 && p != 0xf0) break;
    if (p == 0x66 || p == 0xf2 || p == 0xf3) out[n++] = p;
    at++;
  }
  unsigned head = n; /* REX, VEX or EVEX starts here */
  bool has_modrm = in->attributes & ZYDIS_ATTRIB_HAS_MODRM;
  unsigned modrm_at = has_modrm ? in->raw.modrm.offset : in->length;
  while (at < modrm_at) out[n++] = d->bytes[at++];
  if (has_modrm) {
    u8 m = d->bytes[modrm_at];
    u8 *pre = &out[head];
    bool rex = in->attributes & ZYDIS_ATTRIB_HAS_REX, evex = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX, vex = in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    bool vex3 = vex && pre[0] == 0xc4;
    if (has_mem) {
      m = (u8)((m & 0x38) | RSI);
      if (rex) pre[0] &= (u8)~3; /* X, B */
      if (vex3) pre[1] |= 0x60;
      if (evex) pre[1] |= 0x60;
    }
    if (gpr && gpr->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
      m = (u8)((m & 0xf8) | RDX);
      if (rex) pre[0] &= (u8)~1;
      if (vex3 || evex) pre[1] |= 0x20;
      if (evex) pre[1] |= 0x40;
    } else if (gpr && gpr->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) {
      m = (u8)((m & 0xc7) | RDX << 3);
      if (rex) pre[0] &= (u8)~4;
      if (vex || evex) pre[1] |= 0x80;
      if (evex) pre[1] |= 0x10;
    } else if (gpr) {
      return false;
    }
    out[n++] = m;
    at = modrm_at + 1;
    if (in->attributes & ZYDIS_ATTRIB_HAS_SIB) at = in->raw.sib.offset + 1u;
    if (in->raw.disp.size) at = in->raw.disp.offset + in->raw.disp.size / 8u;
  }
  while (at < in->length) out[n++] = d->bytes[at++];
  *len = n;
  return true;
}

static const ZydisDecodedOperand *explicit_general(const struct x86_decoded *d) {
  for (unsigned k = 0; k < d->insn.operand_count_visible; k++)
    if (is_general(class_of(&d->ops[k]))) return &d->ops[k];
  return NULL;
}

static bool emit(const struct x86_decoded *d, struct x86_native *n, struct code *e) {
  const ZydisDecodedOperand *gpr = explicit_general(d);
  bool full = n->avx, hidden = false;
  u8 bytes[24];
  unsigned len;
  put(e, 0x49), put(e, 0x89), put(e, 0xd0); /* mov r8, rdx */
  if (n->fp || n->x87 || n->mmx) puts_(e, (const u8[]){0x0f, 0xae, 0x5c, 0x24, 0xf0}, 5); /* stmxcsr [rsp-16]: the host's */
  if (n->x87 || n->mmx) puts_(e, (const u8[]){0xd9, 0x7c, 0x24, 0xe8}, 4);               /* fnstcw [rsp-24] */
  if (n->x87 || n->mmx) {
    puts_(e, (const u8[]){0x48, 0x0f, 0xae, 0x8f}, 4); /* fxrstor64 [rdi+fx] */
    disp32(e, (u32)offsetof(struct x86_vcpu, fpu.fx));
  }
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    ZydisRegisterClass kl = class_of(op);
    if (is_vector(kl)) move_vector(e, (unsigned)ZydisRegisterGetId(op->reg.value), false, full);
    if (kl == ZYDIS_REGCLASS_MASK && ZydisRegisterGetId(op->reg.value)) move_mask(e, (unsigned)ZydisRegisterGetId(op->reg.value), false);
    if (kl == ZYDIS_REGCLASS_MASK && !ZydisRegisterGetId(op->reg.value)) move_mask(e, 0, false);
    if (is_general(kl) && op != gpr) {
      unsigned r = (unsigned)ZydisRegisterGetId(op->reg.value);
      if (op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN || r > RDX) {
        if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0 && r > RDX) return false;
        return false;
      }
      hidden = true;
      move_general(e, r, r, false);
    }
  }
  if (gpr) {
    unsigned r = (unsigned)ZydisRegisterGetId(gpr->reg.value);
    if (class_of(gpr) == ZYDIS_REGCLASS_GPR8) return false;
    move_general(e, RDX, r, false);
    if (hidden) return false;
  }
  if (n->fp) {
    mxcsr(e, false, (u32)offsetof(struct x86_vcpu, fpu.mxcsr_run));
  }
  if (!rewrite(d, n->mem_size != 0, gpr, bytes, &len)) return false;
  puts_(e, bytes, len);
  if (n->flags) puts_(e, (const u8[]){0x9c, 0x41, 0x8f, 0x00}, 4); /* pushf; pop [r8] */
  if (n->fp) {
    mxcsr(e, true, (u32)offsetof(struct x86_vcpu, fpu.mxcsr_run));
  }
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    ZydisRegisterClass kl = class_of(op);
    if (!(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) continue;
    if (is_vector(kl)) move_vector(e, (unsigned)ZydisRegisterGetId(op->reg.value), true, full);
    if (kl == ZYDIS_REGCLASS_MASK) move_mask(e, (unsigned)ZydisRegisterGetId(op->reg.value), true);
    if (is_general(kl)) move_general(e, op == gpr ? RDX : (unsigned)ZydisRegisterGetId(op->reg.value), (unsigned)ZydisRegisterGetId(op->reg.value), true);
  }
  if (n->x87 || n->mmx) {
    puts_(e, (const u8[]){0x48, 0x0f, 0xae, 0x87}, 4); /* fxsave64 [rdi+fx] */
    disp32(e, (u32)offsetof(struct x86_vcpu, fpu.fx));
    puts_(e, (const u8[]){0xdb, 0xe3, 0xd9, 0x6c, 0x24, 0xe8}, 6); /* fninit; fldcw [rsp-24]: as the host's C code expects */
  }
  if (n->fp || n->x87 || n->mmx) puts_(e, (const u8[]){0x0f, 0xae, 0x54, 0x24, 0xf0}, 5); /* ldmxcsr [rsp-16] */
  if (full) puts_(e, (const u8[]){0xc5, 0xf8, 0x77}, 3); /* vzeroupper */
  put(e, 0xc3);
  return e->n <= sizeof(e->b);
}

/* Memory operands that must be aligned (SDM Vol. 2A, exception classes 1, 2 and 4 of legacy SSE; aligned moves of VEX and EVEX). */
static bool aligned_mnemonic(ZydisMnemonic m) {
  switch (m) {
  case ZYDIS_MNEMONIC_MOVAPS: case ZYDIS_MNEMONIC_MOVAPD: case ZYDIS_MNEMONIC_MOVDQA: case ZYDIS_MNEMONIC_MOVNTPS: case ZYDIS_MNEMONIC_MOVNTPD:
  case ZYDIS_MNEMONIC_MOVNTDQ: case ZYDIS_MNEMONIC_MOVNTDQA: case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA:
  case ZYDIS_MNEMONIC_VMOVDQA32: case ZYDIS_MNEMONIC_VMOVDQA64: case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ:
  case ZYDIS_MNEMONIC_VMOVNTDQA: return true;
  default: return false;
  }
}
static bool unaligned_mnemonic(ZydisMnemonic m) {
  switch (m) {
  case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU: case ZYDIS_MNEMONIC_PCMPESTRI:
  case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI: case ZYDIS_MNEMONIC_PCMPISTRM: return true;
  default: return false;
  }
}

static bool describe(const struct x86_decoded *d, struct x86_native *n) {
  const ZydisDecodedInstruction *in = &d->insn;
  bool vector = false;
  n->evex = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
  n->avx = n->evex || in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  for (unsigned k = 0; k < in->operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    ZydisRegisterClass kl = class_of(op);
    vector |= is_vector(kl);
    n->mmx |= kl == ZYDIS_REGCLASS_MMX;
    n->x87 |= kl == ZYDIS_REGCLASS_X87;
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value == ZYDIS_REGISTER_MXCSR) n->fp = true;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && k < in->operand_count_visible) {
      if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || op->size / 8 > 64) return false; /* gathers and scatters */
      n->mem_size = op->size / 8;
      n->mem_read = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
      n->mem_write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    }
  }
  n->x87 |= in->meta.isa_ext == ZYDIS_ISA_EXT_X87;
  n->waits = true; /* the control instructions that do not wait are in x87.c */
  n->sse = !n->avx && !n->x87 && !n->mmx;
  if (n->mmx && vector) n->fp = true;
  if (n->mem_size >= 16) n->mem_aligned = n->avx ? aligned_mnemonic(in->mnemonic) : !unaligned_mnemonic(in->mnemonic);
  if (in->cpu_flags) {
    const ZydisAccessedFlags *f = in->cpu_flags;
    n->flags = ((f->modified | f->set_0 | f->set_1 | f->undefined) &
                (ZYDIS_CPUFLAG_CF | ZYDIS_CPUFLAG_PF | ZYDIS_CPUFLAG_AF | ZYDIS_CPUFLAG_ZF | ZYDIS_CPUFLAG_SF | ZYDIS_CPUFLAG_OF)) != 0;
  }
  return n->evex ? host_avx512 : n->avx ? host_avx : true;
}

/* Stubs by the rewritten bytes plus which general register is meant. */
#define BUCKETS 4096
static struct x86_native *buckets[BUCKETS];
FORK_MUTEX(lock); /* a stub is entered whole */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static unsigned make_key(const struct x86_decoded *d, u8 *key) {
  const ZydisDecodedOperand *gpr = explicit_general(d);
  unsigned len;
  bool mem = false;
  for (unsigned k = 0; k < d->insn.operand_count_visible; k++) mem |= d->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (!rewrite(d, mem, gpr, key, &len) || len > 16) return 0;
  key[len++] = gpr ? (u8)ZydisRegisterGetId(gpr->reg.value) : 0xff;
  key[len++] = (u8)(d->insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64);
  return len;
}

static struct x86_native *make(const struct x86_decoded *d, const u8 *key, unsigned len) {
  struct x86_native *n = calloc(1, sizeof(*n));
  struct code e = {.n = 0};
  if (!n) return NULL;
  memcpy(n->key, key, len);
  n->key_len = (u8)len;
  if (describe(d, n) && emit(d, n, &e)) n->stub = (void (*)(struct x86_vcpu *, void *, u64 *))(uintptr_t)codemem_add(e.b, e.n);
  if (n->stub) return n;
  free(n);
  return NULL;
}

struct x86_native *x86_native_get(const struct x86_decoded *d) {
  u8 key[32];
  pthread_once(&once, host_features);
  unsigned len = make_key(d, key), h = 2166136261u;
  if (!len) return NULL;
  for (unsigned k = 0; k < len; k++) h = (h ^ key[k]) * 16777619u;
  struct x86_native **b = &buckets[h % BUCKETS], *n;
  pthread_mutex_lock(&lock);
  for (n = *b; n && !(n->key_len == len && !memcmp(n->key, key, len)); n = n->next) {}
  if (!n && (n = make(d, key, len))) {
    n->next = *b;
    *b = n;
  }
  pthread_mutex_unlock(&lock);
  return n;
}
