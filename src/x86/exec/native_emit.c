/* Makes the stubs of x87 and MMX: load the whole x87 state, the instruction with its memory operand at [rsi], store the state.
 *
 * In a stub: rdi = vCPU, rsi = host address of the memory operand, rdx on entry = where flags go (kept in r8).  A general register operand is moved to rdx:
 * its field in the instruction is rewritten.
 */
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

/* mov r64, [rdi+regs[n]] and back */
static void move_general(struct code *e, unsigned host, unsigned guest, bool store) {
  puts_(e, (const u8[]){0x48, store ? 0x89 : 0x8b, (u8)(0x87 | host << 3)}, 3);
  disp32(e, (u32)(offsetof(struct x86_vcpu, regs) + 8 * guest));
}

static ZydisRegisterClass class_of(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(op->reg.value) : ZYDIS_REGCLASS_INVALID;
}
static bool is_general(ZydisRegisterClass k) { return k == ZYDIS_REGCLASS_GPR64 || k == ZYDIS_REGCLASS_GPR32 || k == ZYDIS_REGCLASS_GPR16 || k == ZYDIS_REGCLASS_GPR8; }

/* The instruction's bytes with [rsi] as memory operand and rdx as explicit general register.  Offsets of ModRM come from Zydis. */
static bool rewrite(const struct x86_decoded *d, bool has_mem, const ZydisDecodedOperand *gpr, u8 *out, unsigned *len) {
  const ZydisDecodedInstruction *in = &d->insn;
  unsigned at = 0, n = 0;
  while (at < in->length) { /* prefixes: segment and address size go */
    u8 p = d->bytes[at];
    if (p != 0x66 && p != 0xf2 && p != 0xf3 && p != 0x26 && p != 0x2e && p != 0x36 && p != 0x3e && p != 0x64 && p != 0x65 && p != 0x67 && p != 0xf0) break;
    if (p == 0x66 || p == 0xf2 || p == 0xf3) out[n++] = p;
    at++;
  }
  unsigned head = n; /* REX stands here */
  bool has_modrm = in->attributes & ZYDIS_ATTRIB_HAS_MODRM;
  unsigned modrm_at = has_modrm ? in->raw.modrm.offset : in->length;
  while (at < modrm_at) out[n++] = d->bytes[at++];
  if (has_modrm) {
    u8 m = d->bytes[modrm_at];
    u8 *pre = &out[head];
    bool rex = in->attributes & ZYDIS_ATTRIB_HAS_REX;
    if (has_mem) {
      m = (u8)((m & 0x38) | RSI);
      if (rex) pre[0] &= (u8)~3; /* X, B */
    }
    if (gpr && gpr->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
      m = (u8)((m & 0xf8) | RDX);
      if (rex) pre[0] &= (u8)~1;
    } else if (gpr && gpr->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) {
      m = (u8)((m & 0xc7) | RDX << 3);
      if (rex) pre[0] &= (u8)~4;
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
  u8 bytes[24];
  unsigned len;
  if (gpr && class_of(gpr) == ZYDIS_REGCLASS_GPR8) return false;
  put(e, 0x49), put(e, 0x89), put(e, 0xd0);                            /* mov r8, rdx */
  puts_(e, (const u8[]){0x0f, 0xae, 0x9f}, 3);                         /* stmxcsr [rdi+fx+24]: FXRSTOR is to leave it as it is */
  disp32(e, (u32)offsetof(struct x86_vcpu, fpu.fx) + 24);
  puts_(e, (const u8[]){0xd9, 0x7c, 0x24, 0xe8}, 4);                   /* fnstcw [rsp-24] */
  puts_(e, (const u8[]){0x48, 0x0f, 0xae, 0x8f}, 4);                   /* fxrstor64 [rdi+fx] */
  disp32(e, (u32)offsetof(struct x86_vcpu, fpu.fx));
  if (gpr) move_general(e, RDX, (unsigned)ZydisRegisterGetId(gpr->reg.value), false);
  if (!rewrite(d, n->mem_size != 0, gpr, bytes, &len)) return false;
  if (d->insn.cpu_flags && d->insn.cpu_flags->tested) { /* mov eax, [rdi+rflags]; and eax, arithmetic flags; push rax; popf */
    puts_(e, (const u8[]){0x8b, 0x87}, 2);
    disp32(e, (u32)offsetof(struct x86_vcpu, rflags));
    puts_(e, (const u8[]){0x25, FL_ARITH & 0xff, FL_ARITH >> 8, 0, 0, 0x50, 0x9d}, 7);
  }
  puts_(e, bytes, len);
  if (n->flags) puts_(e, (const u8[]){0x9c, 0x41, 0x8f, 0x00}, 4); /* pushf; pop [r8] */
  if (gpr && (gpr->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) move_general(e, RDX, (unsigned)ZydisRegisterGetId(gpr->reg.value), true);
  puts_(e, (const u8[]){0x48, 0x0f, 0xae, 0x87}, 4); /* fxsave64 [rdi+fx] */
  disp32(e, (u32)offsetof(struct x86_vcpu, fpu.fx));
  puts_(e, (const u8[]){0xdb, 0xe3, 0xd9, 0x6c, 0x24, 0xe8}, 6); /* fninit; fldcw [rsp-24]: as the host's C code expects */
  put(e, 0xc3);
  return e->n <= sizeof(e->b);
}

static bool describe(const struct x86_decoded *d, struct x86_native *n) {
  const ZydisDecodedInstruction *in = &d->insn;
  for (unsigned k = 0; k < in->operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    n->mmx |= class_of(op) == ZYDIS_REGCLASS_MMX;
    n->x87 |= class_of(op) == ZYDIS_REGCLASS_X87;
    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || k >= in->operand_count_visible) continue;
    if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || op->size / 8 > 64) return false;
    n->mem_size = op->size / 8;
    n->mem_read = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
    n->mem_write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  }
  n->x87 |= in->meta.isa_ext == ZYDIS_ISA_EXT_X87;
  n->waits = true; /* the control instructions that do not wait are in x87.c */
  if (in->cpu_flags) {
    const ZydisAccessedFlags *f = in->cpu_flags;
    n->flags = ((f->modified | f->set_0 | f->set_1 | f->undefined) &
                (ZYDIS_CPUFLAG_CF | ZYDIS_CPUFLAG_PF | ZYDIS_CPUFLAG_AF | ZYDIS_CPUFLAG_ZF | ZYDIS_CPUFLAG_SF | ZYDIS_CPUFLAG_OF)) != 0;
  }
  return true;
}

/* Stubs by the rewritten bytes plus which general register is meant. */
#define BUCKETS 4096
static struct x86_native *buckets[BUCKETS];
FORK_MUTEX(lock); /* a stub is entered whole */

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
