/* x87 instructions run on the host's x87 registers, which hold the guest's while c->code.x87 is set.  Only where the guest masks all exceptions (else the
 * interpreter runs them): then nothing waits, and the host leaves data pointer and opcode alone.  The instruction pointer is the guest's: noted in memory
 * before anything that could show it (SDM Vol. 1, 8.1.8). */
#include "x86/exec/native.h"
#include "x86/translate/private.h"

#define X87_LOADED EM_GS(offsetof(struct x86_vcpu, code.x87))
enum { MASKS = 0x3f };

void t_compare_x87(struct emitter *e) { em_mem(e, 0, 0x80, 7, X87_LOADED), em8(e, 0); }

static void need_x87(struct translation *t) {
  if (t->x87) return;
  t_lose_flags(t);
  t->rax = PLAN_ALONE;
  t_compare_x87(&t->e);
  struct t_slow *s = t_slow(t);
  s->load_from = em_jcc(&t->e, CC_E);
  s->load_back = t->e.p;
  s->load_x87 = true;
  t->x87 = true;
}

static void pointer(struct translation *t, s32 offset) {
  t->x87_pointer_waits = true;
  t->x87_pointer = offset;
}

void t_flush_x87_pointer(struct translation *t) {
  struct emitter *e = &t->e;
  if (!t->x87_pointer_waits) return;
  t->x87_pointer_waits = false;
  if (t->segmented && t->x87_pointer >= 0) {
    t->rax = PLAN_ALONE;
    em_mov_imm32(e, H_RAX, t_ip(t, t->x87_pointer));
    em_store(e, EM_GS(offsetof(struct x86_vcpu, code.x87_page)), H_RAX);
    em_mem(e, 0, 0xc7, 0, EM_GS(offsetof(struct x86_vcpu, code.x87_ip))), em32(e, 0);
    return;
  }
  if (t->x87_pointer >= 0 && !t->x87_page) {
    t->x87_page = true;
    t->rax = PLAN_ALONE;
    em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.page)));
    em_store(e, EM_GS(offsetof(struct x86_vcpu, code.x87_page)), H_RAX);
  }
  em_mem(e, 0, 0xc7, 0, EM_GS(offsetof(struct x86_vcpu, code.x87_ip))), em32(e, (u32)t->x87_pointer);
}

/* The instruction with its memory operand, if it has one. */
static bool encode(struct translation *t) {
  const ZydisDecodedInstruction *z = t->z;
  struct em_mem m;
  if (z->raw.modrm.mod != 3) {
    if (!t_access(t, 0, &m)) return false;
    if (t->p->needs) t_need_flags(t);
    em_mem(&t->e, 0, z->opcode, z->raw.modrm.reg, m);
  } else {
    if (t->p->needs) t_need_flags(t);
    em8(&t->e, z->opcode);
    em8(&t->e, 0xc0 | z->raw.modrm.reg << 3 | z->raw.modrm.rm);
  }
  return true;
}

static bool arithmetic(struct translation *t) {
  need_x87(t);
  if (!encode(t)) return false;
  if (t->i->flags_written) t_wrote_flags(t);
  pointer(t, t->start + t->i->off);
  return true;
}

/* FNSTCW, FNSTSW, FNCLEX: leave the pointer as it is. */
static bool control(struct translation *t) {
  need_x87(t);
  return encode(t);
}

/* One that unmasks an exception is left to the interpreter. */
static bool load_control(struct translation *t) {
  struct emitter *e = &t->e;
  struct em_mem m;
  need_x87(t);
  if (!t_access(t, 0, &m)) return false;
  t_lose_flags(t);
  em_mem(e, 0, 0x0fb7, H_RAX, m);
  em8(e, 0xf7), em8(e, 0xd0);        /* not eax */
  em8(e, 0xa8), em8(e, MASKS);       /* test al, masks */
  t_slow_if(t, CC_NE);
  em_mem(e, 0, 0xd9, 5, m);
  return true;
}

static bool store_status(struct translation *t) {
  if (t->i->iflags & X86_I_MEM) return control(t);
  need_x87(t);
  em8(&t->e, 0xdf), em8(&t->e, 0xe0);                              /* fnstsw ax */
  em8(&t->e, 0x66), em_reg(&t->e, 0, 0x8b, T_HOME(RAX), H_RAX); /* mov r13w, ax */
  return true;
}

static bool initialize(struct translation *t) {
  need_x87(t);
  em8(&t->e, 0xdb), em8(&t->e, 0xe3);
  pointer(t, -1);
  return true;
}

/* Nothing waits. */
static bool wait(struct translation *t) {
  need_x87(t);
  return true;
}

static bool (*translator_of(const struct translation *t))(struct translation *) {
  switch (t->z->mnemonic) {
  case ZYDIS_MNEMONIC_FNSTCW:
  case ZYDIS_MNEMONIC_FNCLEX: return control;
  case ZYDIS_MNEMONIC_FNSTSW: return store_status;
  case ZYDIS_MNEMONIC_FLDCW: return load_control;
  case ZYDIS_MNEMONIC_FNINIT: return initialize;
  case ZYDIS_MNEMONIC_FWAIT: return wait;
  default: return x86_x87_is_plain(t->i) ? arithmetic : NULL;
  }
}

bool t_x87_keeps_pointer(const struct translation *t) {
  return !(t->i->iflags & X86_I_MEM) && translator_of(t);
}

bool t_x87(struct translation *t) {
  bool (*translate)(struct translation *) = t->c->code.can_x87 ? translator_of(t) : NULL;
  return translate && translate(t);
}
