/* Instructions of the kernel that touch a few fields of the vCPU and are too frequent for a call of the interpreter.
 *
 * Code for supervisor rights runs at CPL 0 in protected mode, without debugging (code.c), which leaves few cases.  What is not
 * decided here goes to the interpreter.
 */
#include "x86/translate/private.h"
#include "x86/x86.h"

#define FIELD(f) EM_GS(offsetof(struct x86_vcpu, f))

static bool supervisor(const struct translation *t) {
  return t->right == TLB_SUPER || t->right == TLB_SUPER_SMAP;
}

/* op dword [field], imm32: 1 or, 4 and */
static void change(struct translation *t, unsigned op, struct em_mem field, u32 v) {
  em_mem(&t->e, 0, 0x81, op, field), em32(&t->e, v);
}
static void slow_unless_zero(struct translation *t, struct em_mem byte) {
  em_mem(&t->e, 0, 0x80, 7, byte), em8(&t->e, 0); /* cmp byte [field], 0 */
  t_slow_if(t, CC_NE);
}
static void slow_if_bit(struct translation *t, struct em_mem field, u32 bit, bool set) {
  em_mem(&t->e, 0, 0xf7, 0, field), em32(&t->e, bit); /* test dword [field], bit */
  t_slow_if(t, set ? CC_NE : CC_E);
}

/* ---- interrupt flag ---- */

static bool cli(struct translation *t) {
  if (!supervisor(t)) return false;
  t_lose_flags(t);
  change(t, 4, FIELD(rflags), ~FL_IF);
  return true;
}

/* Where nothing waits, nothing can come before the instruction behind: there is no gate in between.  As the last of its block it
 * is the interpreter's. */
static bool sti(struct translation *t) {
  if (!supervisor(t) || t->k + 1u == t->b->n) return false;
  t_lose_flags(t);
  slow_unless_zero(t, FIELD(irq_waits));
  change(t, 1, FIELD(rflags), FL_IF);
  return true;
}

/* ---- RFLAGS ---- */

/* DF: 1 or, 4 and. */
static bool direction(struct translation *t) {
  bool set = t->z->mnemonic == ZYDIS_MNEMONIC_STD;
  t_lose_flags(t);
  change(t, set ? 1 : 4, FIELD(rflags), set ? FL_DF : ~FL_DF);
  return true;
}

/* Where IOPL decides. */
static bool is_v86(const struct translation *t) { return t->b->mode & X86_MODE_REAL && t->right == TLB_USER; }

/* The arithmetic flags come from where LAHF and SETO have left them. */
static bool pushf(struct translation *t) {
  struct emitter *e = &t->e;
  struct em_mem m;
  if (!t_is_word(t) || is_v86(t)) return false;
  t_store_flags(t);
  t->rcx = PLAN_ALONE;
  em_mem(e, 0, 0x0fb7, H_RAX, FIELD(code.flags)); /* AH: five flags in their places, AL: OF */
  em_reg(e, 0, 0x0fb6, H_RCX, H_RAX);             /* movzx ecx, al */
  em_reg(e, 0, 0xc1, 5, H_RAX), em8(e, 8);        /* shr eax, 8 */
  em8(e, 0x25), em32(e, FL_ARITH & ~FL_OF);       /* and eax */
  em_reg(e, 0, 0xc1, 4, H_RCX), em8(e, 11);       /* shl ecx, 11 */
  em_reg(e, 0, 0x0b, H_RAX, H_RCX);               /* or eax, ecx */
  em_mem(e, 0, 0x8b, H_RCX, FIELD(rflags));
  em_reg(e, 0, 0x81, 4, H_RCX), em32(e, ~(FL_ARITH | FL_RF | FL_VM)); /* and ecx */
  em_reg(e, 0, 0x0b, H_RAX, H_RCX);
  em_store(e, FIELD(code.scratch), H_RAX);
  if (!t_access(t, 0, &m)) return false;
  em_load(e, H_RAX, FIELD(code.scratch));
  t_store_slot(t, m, H_RAX);
  t_move_rsp(t, -t_slot_size(t));
  return true;
}

/* eax &= mask, or another register. */
static void keep(struct emitter *e, unsigned reg, u32 mask) {
  em_reg(e, 0, 0x81, 4, reg), em32(e, mask);
}

/* ECX to c->code.flags, arithmetic flags as LAHF and SETO give them.  EAX changes. */
static void split_flags(struct emitter *e) {
  em_reg(e, 0, 0x0fb6, H_RAX, H_RCX);       /* movzx eax, cl */
  em_reg(e, 0, 0xc1, 4, H_RAX), em8(e, 8);  /* shl eax, 8 */
  em_reg(e, 0, 0xc1, 5, H_RCX), em8(e, 11); /* shr ecx, 11 */
  keep(e, H_RCX, 1);
  em_reg(e, 0, 0x0b, H_RAX, H_RCX); /* or eax, ecx */
  em8(e, 0x66), em_mem(e, 0, 0x89, H_RAX, FIELD(code.flags));
}

/* Arithmetic flags, DF, ID, and IF in the kernel, where nothing waits for it; a change of any other is the interpreter's. */
static bool popf(struct translation *t) {
  u32 changes = FL_ARITH | FL_DF | FL_ID | (supervisor(t) ? FL_IF : 0),
      others = FL_TF | FL_IF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP;
  struct emitter *e = &t->e;
  struct em_mem m;
  if (t->m16 || !t_is_word(t) || !t_access(t, 0, &m)) return false;
  t_lose_flags(t);
  em_mem(e, 0, 0x8b, H_RCX, m);
  em_reg(e, 0, 0x8b, H_RAX, H_RCX);
  em_mem(e, 0, 0x33, H_RAX, FIELD(rflags)); /* xor eax: what changes */
  em8(e, 0xa9), em32(e, others & ~changes); /* test eax */
  t_slow_if(t, CC_NE);
  if (supervisor(t)) { /* not whether IF is set already: then nothing waits, or it is soon taken */
    em_reg(e, 0, 0x8b, H_RAX, H_RCX);
    em_reg(e, 0, 0xc1, 5, H_RAX), em8(e, 9); /* shr eax: IF to bit 0 */
    em_mem(e, 0, 0x84, H_RAX, FIELD(irq_waits)); /* test al */
    t_slow_if(t, CC_NE);
  }
  em_reg(e, 0, 0x8b, H_RAX, H_RCX);
  keep(e, H_RAX, changes & ~FL_ARITH);
  change(t, 4, FIELD(rflags), ~(changes & ~FL_ARITH));
  em_mem(e, 0, 0x09, H_RAX, FIELD(rflags)); /* or */
  split_flags(e);
  t_move_rsp(t, (s32)t->word);
  t_stored_flags(t);
  t_goto(t, t->start + t->i->next);
  return t->ended = true;
}

/* ---- SMAP ---- */

/* The block ends: what follows was translated for the other rights. */
static void other_rights(struct translation *t, unsigned right) {
  struct emitter *e = &t->e;
  em_mem(e, 0, 0xc6, 0, FIELD(mmu.right)), em8(e, right);
  em_load(e, H_RAX, FIELD(code.self));
  em_lea(e, H_RAX, EM_AT(H_RAX, GS_OF(mmu.tables) + (s32)(right * X86_TLB_SIZE * sizeof(struct x86_tlb_entry))));
  em_store(e, FIELD(tlb), H_RAX);
  em_load(e, H_RAX, FIELD(code.generation));
  em8(e, 0x24), em8(e, 0xfc);             /* and al, ~3 */
  if (right) em8(e, 0x0c), em8(e, right); /* or al, right */
  em_store(e, FIELD(code.generation), H_RAX);
  t_goto(t, t->start + t->i->next);
  t->exits[t->n_exits - 1].smap = true;
  t->ended = true;
}

_Static_assert((TLB_SUPER ^ TLB_SUPER_SMAP) == 1 && TLB_COUNT <= 4, "x86_code_state.generation, link_jump()");

static bool stac(struct translation *t) {
  if (!supervisor(t) || t->segmented) return false;
  t_store_flags(t);
  change(t, 1, FIELD(rflags), FL_AC);
  if (t->right == TLB_SUPER_SMAP) other_rights(t, TLB_SUPER);
  return true;
}

static bool clac(struct translation *t) {
  if (!supervisor(t) || t->segmented) return false;
  if (t->right == TLB_SUPER_SMAP) return true; /* AC is 0 */
  t_store_flags(t);
  slow_if_bit(t, FIELD(cr4), CR4_SMAP, false);
  change(t, 4, FIELD(rflags), ~FL_AC);
  other_rights(t, TLB_SUPER_SMAP);
  return true;
}

/* ---- registers of the vCPU ---- */

static bool swapgs(struct translation *t) {
  struct em_mem base = EM_GS(offsetof(struct x86_vcpu, seg) + SEG_GS * sizeof(struct x86_seg) + offsetof(struct x86_seg, base));
  struct emitter *e = &t->e;
  if (!supervisor(t)) return false;
  em_load(e, H_RCX, base);
  em_load(e, H_RAX, FIELD(kernel_gs_base));
  em_store(e, base, H_RAX);
  em_store(e, FIELD(kernel_gs_base), H_RCX);
  return true;
}

/* MOV from CR0, CR2, CR3, CR4. */
static bool from_control(struct translation *t) {
  static const s32 at[] = {GS_OF(cr0), 0, GS_OF(cr2), GS_OF(cr3), GS_OF(cr4)};
  const ZydisDecodedOperand *from = &t->ops[1];
  if (!supervisor(t) || from->type != ZYDIS_OPERAND_TYPE_REGISTER || from->reg.value < ZYDIS_REGISTER_CR0 ||
      from->reg.value > ZYDIS_REGISTER_CR4 || from->reg.value == ZYDIS_REGISTER_CR1)
    return false;
  t_load_word(t, H_RAX, EM_GS(at[from->reg.value - ZYDIS_REGISTER_CR0]));
  t_write(t, t->i->rm, H_RAX);
  return true;
}

static bool is_segment(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}
static struct em_mem selector(const ZydisDecodedOperand *op) {
  unsigned seg = (unsigned)ZydisRegisterGetId(op->reg.value);
  return EM_GS(offsetof(struct x86_vcpu, seg) + seg * sizeof(struct x86_seg) + offsetof(struct x86_seg, sel));
}

/* Intel's processors write two bytes of a 32-bit slot. */
static bool push_segment(struct translation *t) {
  struct emitter *e = &t->e;
  struct em_mem m;
  if (!is_segment(&t->ops[0]) || !t_is_word(t) || x86_is_amd(t->c) || !t_access(t, 0, &m)) return false;
  em_mem(e, 0, 0x0fb7, H_RAX, selector(&t->ops[0])); /* movzx */
  if (t->m32) em8(e, 0x66);
  em_mem(e, !t->m32, 0x89, H_RAX, m);
  t_move_rsp(t, -t_slot_size(t));
  return true;
}

/* MOV from a segment register. */
static bool from_segment(struct translation *t) {
  const ZydisDecodedOperand *to = &t->ops[0], *from = &t->ops[1];
  if (to->type != ZYDIS_OPERAND_TYPE_REGISTER || (to->size < 32 && !t->m16) || !is_segment(from)) return false;
  em_mem(&t->e, 0, 0x0fb7, H_RAX, selector(from));
  if (to->size == 16)
    em_sized_reg(&t->e, 16, 0x8b, T_HOME(x86_plan_general(to->reg.value)), H_RAX);
  else
    t_write(t, x86_plan_general(to->reg.value), H_RAX);
  return true;
}

/* ---- loads of ES and DS in real and virtual-8086 mode: x86_seg_real() ---- */

static bool loads_here(const struct translation *t, unsigned seg) { return t->m16 && t->b->mode & X86_MODE_REAL && (seg == SEG_ES || seg == SEG_DS); }

_Static_assert(offsetof(struct x86_seg, type) == 14 && offsetof(struct x86_seg, dpl) == 16 && offsetof(struct x86_seg, flat) == 23, "t_load_segment()");

/* `flat` need not be what it could be: limits are looked at then. */
void t_load_segment(struct translation *t, unsigned seg) {
  struct emitter *e = &t->e;
  s32 at = GS_OF(seg) + (s32)(seg * sizeof(struct x86_seg));
  bool v86 = is_v86(t);
  em8(e, 0x66), em_mem(e, 0, 0x89, H_RAX, EM_GS(at + (s32)offsetof(struct x86_seg, sel)));
  if (v86) {
    em_mem(e, 0, 0xc7, 0, EM_GS(at + (s32)offsetof(struct x86_seg, limit))), em32(e, 0xffff);
    em8(e, 0x66), em_mem(e, 0, 0xc7, 0, EM_GS(at + 14)), em8(e, 3), em8(e, 1);  /* type, s */
    em_mem(e, 1, 0xc7, 0, EM_GS(at + 16)), em32(e, 0x0103);                     /* dpl, present */
  } else {
    em_mem(e, 0, 0xc7, 0, EM_GS(at + 14)), em32(e, 0x01000103); /* type, s, dpl, present */
    em_mem(e, 0, 0xc6, 0, EM_GS(at + (s32)offsetof(struct x86_seg, flat))), em8(e, X86_SEG_OTHER);
  }
  em_mem(e, 0, 0x8d, H_RAX, (struct em_mem){.base = H_NONE, .index = H_RAX, .shift = 3});
  em_mem(e, 0, 0x8d, H_RAX, (struct em_mem){.base = H_RAX, .index = H_RAX});
  em_store(e, EM_GS(at + (s32)offsetof(struct x86_seg, base)), H_RAX);
}

/* MOV to a segment register. */
static bool to_segment(struct translation *t) {
  const ZydisDecodedOperand *to = &t->ops[0], *from = &t->ops[1];
  if (!is_segment(to) || !loads_here(t, t->i->sub)) return false;
  if (from->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    em_mem(&t->e, 0, 0x0fb7, H_RAX, m);
  } else {
    em_reg(&t->e, 0, 0x0fb7, H_RAX, T_HOME(t->i->rm));
  }
  t_load_segment(t, t->i->sub);
  return true;
}

static bool pop_segment(struct translation *t) {
  struct em_mem m;
  if (!is_segment(&t->ops[0]) || !loads_here(t, t->i->sub) || !t_is_word(t) || !t_access(t, 0, &m)) return false;
  em_mem(&t->e, 0, 0x0fb7, H_RAX, m);
  t_load_segment(t, t->i->sub);
  t_move_rsp(t, t_slot_size(t));
  return true;
}

/* LDS, LES. */
static bool load_pointer(struct translation *t) {
  struct em_mem m, sel;
  if (!loads_here(t, t->i->sub) || !t_access(t, 0, &m)) return false;
  sel = m;
  sel.disp += t->i->opsize;
  em_mem(&t->e, 0, 0x0fb7, H_RAX, sel);
  em_mem(&t->e, 0, t->i->opsize == 2 ? 0x0fb7 : 0x8b, H_RCX, m);
  t_load_segment(t, t->i->sub);
  em_sized_reg(&t->e, 8u * t->i->opsize, 0x8b, T_HOME(t->i->reg), H_RCX);
  return true;
}

static bool move(struct translation *t) { return from_control(t) || from_segment(t) || to_segment(t); }

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE. */
static struct em_mem base_named(const struct translation *t) {
  unsigned m = t->z->mnemonic, seg = m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
  return EM_GS(offsetof(struct x86_vcpu, seg) + seg * sizeof(struct x86_seg) + offsetof(struct x86_seg, base));
}

static bool read_base(struct translation *t) {
  t_lose_flags(t);
  slow_if_bit(t, FIELD(cr4), CR4_FSGSBASE, false);
  em_mem(&t->e, t->i->opsize == 8, 0x8b, H_RAX, base_named(t));
  t_write(t, t->i->rm, H_RAX);
  return true;
}

/* Addresses that only five-level paging makes canonical are left to the interpreter. */
static bool write_base(struct translation *t) {
  struct emitter *e = &t->e;
  bool wide = t->i->opsize == 8;
  t_lose_flags(t);
  slow_if_bit(t, FIELD(cr4), CR4_FSGSBASE, false);
  em_reg(e, wide, 0x8b, H_RCX, t_read(t, t->i->rm, H_RCX));
  if (wide) {
    em_mov(e, H_RAX, H_RCX);
    em_reg(e, 1, 0xc1, 7, H_RAX), em8(e, 47); /* sar rax: 0 or -1 */
    em_reg(e, 1, 0x83, 0, H_RAX), em8(e, 1);  /* add */
    em_reg(e, 1, 0x83, 7, H_RAX), em8(e, 1);  /* cmp */
    t_slow_if(t, CC_A);
  }
  em_store(e, base_named(t), H_RCX);
  return true;
}

static bool rdpkru(struct translation *t) {
  struct emitter *e = &t->e;
  t_lose_flags(t);
  slow_if_bit(t, FIELD(cr4), CR4_PKE, false);
  em_reg(e, 0, 0x85, T_HOME(RCX), T_HOME(RCX)); /* test: must be 0 */
  t_slow_if(t, CC_NE);
  em_mem(e, 0, 0x8b, T_HOME(RAX), FIELD(pkru));
  em_mov_imm32(e, T_HOME(RDX), 0);
  return true;
}

/* Bytes that others have written are seen from here on: by the gate of the next block. */
static bool serialize(struct translation *t) {
  t_goto(t, t->start + t->i->next);
  t->ended = true;
  return true;
}

/* ---- time ---- */

static bool rdtsc(struct translation *t) {
  struct emitter *e = &t->e;
  bool p = t->z->mnemonic == ZYDIS_MNEMONIC_RDTSCP;
  t_lose_flags(t);
  if (!supervisor(t)) slow_if_bit(t, FIELD(cr4), CR4_TSD, true);
  slow_unless_zero(t, FIELD(tsc_scaled));
  if (p) em8(e, 0x0f), em8(e, 0xae), em8(e, 0xe8); /* lfence */
  em8(e, 0x0f), em8(e, 0x31);                      /* rdtsc */
  em_reg(e, 1, 0xc1, 4, H_RDX), em8(e, 32);        /* shl rdx, 32 */
  em_reg(e, 1, 0x0b, H_RAX, H_RDX);                /* or rax, rdx */
  em_mem(e, 1, 0x03, H_RAX, FIELD(tsc_offset));
  em_reg(e, 0, 0x8b, T_HOME(RAX), H_RAX);
  em_mov(e, H_RDX, H_RAX);
  em_reg(e, 1, 0xc1, 5, H_RDX), em8(e, 32); /* shr rdx, 32 */
  if (p) em_mem(e, 0, 0x8b, T_HOME(RCX), FIELD(tsc_aux));
  return true;
}

/* ---- into the kernel and out of it (syscall.c) ---- */

static bool system_call(struct translation *t) {
  if (t->m32 || t->right != TLB_USER) return false;
  t_interpret_by(t, GS_OF(code.syscall));
  return true;
}

static bool system_return(struct translation *t) {
  if (t->m32 || !supervisor(t) || t->i->opsize != 8 || x86_is_amd(t->c)) return false;
  t_interpret_by(t, GS_OF(code.sysret));
  return true;
}

/* ---- which ---- */

static const struct {
  u16 mnemonic;
  bool (*translate)(struct translation *t);
} rows[] = {
    {ZYDIS_MNEMONIC_CLI, cli},
    {ZYDIS_MNEMONIC_STI, sti},
    {ZYDIS_MNEMONIC_STAC, stac},
    {ZYDIS_MNEMONIC_CLAC, clac},
    {ZYDIS_MNEMONIC_SWAPGS, swapgs},
    {ZYDIS_MNEMONIC_MOV, move},
    {ZYDIS_MNEMONIC_RDPKRU, rdpkru},
    {ZYDIS_MNEMONIC_RDFSBASE, read_base},
    {ZYDIS_MNEMONIC_RDGSBASE, read_base},
    {ZYDIS_MNEMONIC_WRFSBASE, write_base},
    {ZYDIS_MNEMONIC_WRGSBASE, write_base},
    {ZYDIS_MNEMONIC_SERIALIZE, serialize},
    {ZYDIS_MNEMONIC_RDTSC, rdtsc},
    {ZYDIS_MNEMONIC_RDTSCP, rdtsc},
    {ZYDIS_MNEMONIC_SYSCALL, system_call},
    {ZYDIS_MNEMONIC_SYSRET, system_return},
    {ZYDIS_MNEMONIC_CLD, direction},
    {ZYDIS_MNEMONIC_STD, direction},
    {ZYDIS_MNEMONIC_PUSHF, pushf},
    {ZYDIS_MNEMONIC_PUSHFD, pushf},
    {ZYDIS_MNEMONIC_PUSHFQ, pushf},
    {ZYDIS_MNEMONIC_POPFD, popf},
    {ZYDIS_MNEMONIC_POPFQ, popf},
    {ZYDIS_MNEMONIC_PUSH, push_segment},
    {ZYDIS_MNEMONIC_POP, pop_segment},
    {ZYDIS_MNEMONIC_LDS, load_pointer},
    {ZYDIS_MNEMONIC_LES, load_pointer},
};

bool t_system(struct translation *t) {
  for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
    if (rows[k].mnemonic == t->z->mnemonic) return rows[k].translate(t);
  return false;
}
