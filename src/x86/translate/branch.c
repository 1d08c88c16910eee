/* Control flow: near branches within a page are jumps from block to block, all others look their target up. */
#include "x86/translate/private.h"

/* ---- targets by linear address ---- */

_Static_assert(sizeof(struct x86_code_target) == 32 && X86_TARGET_BITS == 16, "t_find_target()");
#define TARGET(field) EM_GS_AT(H_RCX, offsetof(struct x86_vcpu, code.targets) + offsetof(struct x86_code_target, field))

/* ECX: where the target in RAX is in the table. */
static void target_index(struct emitter *e) {
  em_mem(e, 0, 0x8b, H_RCX, EM_GS(offsetof(struct x86_vcpu, code.salt)));
  em8(e, 0xf2), em8(e, 0x48), em8(e, 0x0f), em8(e, 0x38), em8(e, 0xf1), em8(e, 0xc8); /* crc32 rcx, rax */
  em_reg(e, 0, 0x81, 4, H_RCX), em32(e, X86_TARGET_MASK);                             /* and ecx */
}

void t_find_target(struct translation *t, u8 *miss[2]) {
  struct emitter *e = &t->e;
  t->rcx = PLAN_ALONE;
  target_index(e);
  em_mem(e, 1, 0x3b, H_RAX, TARGET(lin)); /* cmp rax, lin */
  miss[0] = em_jcc(e, CC_NE);
  em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.generation)));
  em_mem(e, 1, 0x3b, H_RAX, TARGET(generation));
  miss[1] = em_jcc(e, CC_NE);
}

void t_make_key(struct translation *t) { em_mem(&t->e, 1, 0x0b, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.cs_key))); } /* or rax */

/* RAX: the address.  how: 2 call, 4 jmp */
static void enter_target(struct translation *t, unsigned how, struct em_mem code) {
  struct emitter *e = &t->e;
  if (!t->segmented) { /* which knows where it is */
    em8(e, 0x48), em8(e, 0x25), em32(e, 0xfffff000); /* and rax, -4096 */
    em_store(e, EM_GS(offsetof(struct x86_vcpu, code.page)), H_RAX);
  }
  em_mem(e, 0, 0xff, how, code);
}

void t_enter_target(struct translation *t) {
  if (!t->segmented) em_load(&t->e, H_RAX, TARGET(lin));
  enter_target(t, 4, TARGET(code));
}

void t_indirect(struct translation *t, s32 add_to_rsp) {
  struct t_slow *s = t_slow(t);
  u8 *miss[2];
  t_find_target(t, miss);
  s->from[s->n_from++] = miss[0];
  s->from[s->n_from++] = miss[1];
  if (add_to_rsp) t_move_rsp(t, add_to_rsp);
  t_enter_target(t);
}

/* ---- returns ----
 *
 * A call of the guest's is one of the host's, so that the host predicts the return.  Frames on the host's stack, from the top: where the host goes on, and
 * the guest's return address, by which a return sees whether it is the one.  They hold as long as linear addresses lead to the same code: whoever changes
 * c->code.generation drops them all, as does a return that finds another address there. */

/* Code under AC = 1 and other supervisor code call one another without a change of generation: their addresses differ in a bit. */
static void tag(struct translation *t, unsigned reg) {
  struct emitter *e = &t->e;
  if (t->right == TLB_SUPER) em8(e, 0x48), em8(e, 0x0f), em8(e, 0xba), em8(e, 0xf8 | reg), em8(e, 62); /* btc reg, 62 */
}

/* RAX: the guest's return address.  Flags are in memory. */
static void open_frame(struct translation *t) {
  struct emitter *e = &t->e;
  tag(t, H_RAX);
  em_mem(e, 1, 0x3b, H_RSP, EM_GS(offsetof(struct x86_vcpu, code.host_rsp_min))); /* cmp rsp */
  t->deep[t->scattered].from = em_jcc(e, CC_B);
  t->deep[t->scattered].back = e->p;
  em8(e, 0x50); /* push rax */
}

/* Where the call comes back to, with the return address in RAX. */
static void land(struct translation *t) {
  struct emitter *e = &t->e;
  s32 next = t->start + t->i->next;
  em8(e, 0x48), em8(e, 0x83), em8(e, 0xc4), em8(e, 8); /* add rsp, 8 */
  if (t->segmented) {
    t_goto(t, next);
    return;
  }
  t_lea(t, H_RAX, EM_AT(H_RAX, -next));
  em_store(e, EM_GS(offsetof(struct x86_vcpu, code.page)), H_RAX);
  t_goto(t, next);
}

/* To the return address in RAX, if the frame on top is its call's. */
static void close_frame(struct translation *t) {
  struct emitter *e = &t->e;
  unsigned reg = t->right == TLB_SUPER ? H_RCX : H_RAX;
  em_mov(e, reg, H_RAX);
  tag(t, reg);
  em_mem(e, 1, 0x3b, reg, EM_AT(H_RSP, 8)); /* cmp reg */
  u8 *other = em_jcc(e, CC_NE);
  t_move_rsp(t, t_slot_size(t));
  em8(e, 0xc3);
  em_here(e, other);
  em_load(e, H_RSP, EM_GS(offsetof(struct x86_vcpu, code.host_rsp)));
}

void t_emit_deep(struct translation *t) {
  struct emitter *e = &t->e;
  for (unsigned n = 0; n < 2; n++) {
    if (!t->deep[n].from) continue;
    em_here(e, t->deep[n].from);
    em_load(e, H_RSP, EM_GS(offsetof(struct x86_vcpu, code.host_rsp)));
    em_jmp_to(e, t->deep[n].back);
  }
}

/* ---- direct branches ---- */

/* A jump to the block itself needs no link. */
static bool to_itself(struct translation *t, u8 *rel32, s32 target) {
  if (target != t->start) return false;
  em_patch(&t->e, rel32, t->f.saved ? t->entry_saved : t->entry_host);
  return true;
}

static void go(struct translation *t, s32 target, u8 *(*emit)(struct emitter *e)) {
  em_align_displacement(&t->e, 1);
  u8 *rel32 = emit(&t->e);
  if (!to_itself(t, rel32, target)) t_exit_to(t, rel32, target);
}

void t_goto(struct translation *t, s32 target) {
  if (!t->f.host) t_save_flags(t);
  go(t, target, em_jmp);
}

/* Where segments are looked at.  A branch with operands of 16 bits goes round at 64 KiB. */
static u32 target_ip(const struct translation *t) {
  u32 ip = t_ip(t, t->start) + (u32)t->i->imm;
  return t->z->operand_width == 16 ? (u16)ip : ip;
}

static s32 branch_target(const struct translation *t) {
  if (t->segmented) return (s32)(target_ip(t) - t->page);
  return (s32)((u32)t->start + (u32)t->i->imm);
}

static bool jump(struct translation *t) {
  t_goto(t, branch_target(t));
  return true;
}

/* Conditions that one test of saved flags decides, by condition code / 2: bits of c->code.flags. */
static const u16 saved_bits[8] = {1, 1u << 8, 1u << 14, 1u << 14 | 1u << 8, 1u << 15, 1u << 10, 0, 0};

static bool conditional(struct translation *t) {
  unsigned cc = t->z->opcode & 15;
  struct emitter *e = &t->e;
  if (t->copies > 1 && !t->scattered && branch_target(t) == t->start) {
    t_need_flags(t);
    bool apart = em_misaligned(e, 2);
    t_exit_to(t, em_jcc(e, cc ^ 1), t->start + t->i->next);
    t->exits[t->n_exits - 1].apart = apart;
    if (t->copy + 1 == t->copies) t_loop(t);
    t->ended = true;
    return true;
  }
  if (!t->f.host && t->f.producer.op == PRODUCER_NONE && saved_bits[cc >> 1]) {
    t_save_flags(t);
    em8(e, 0x66), em_mem(e, 0, 0xf7, 0, EM_GS(offsetof(struct x86_vcpu, code.flags)));
    em8(e, saved_bits[cc >> 1] & 0xff), em8(e, saved_bits[cc >> 1] >> 8);
    cc = cc & 1 ? CC_E : CC_NE;
  } else {
    t_need_flags(t);
  }
  t->keeps_rcx = t->keeps_rax = true;
  bool apart = em_misaligned(e, 2); /* nothing in between: the processor takes a comparison and its jump as one */
  u8 *rel32 = em_jcc(e, cc);
  if (to_itself(t, rel32, branch_target(t))) return true;
  t_exit_to(t, rel32, branch_target(t));
  t->exits[t->n_exits - 1].apart = apart;
  return true;
}

bool t_is_counting(unsigned mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_JCXZ:
  case ZYDIS_MNEMONIC_JECXZ:
  case ZYDIS_MNEMONIC_JRCXZ:
  case ZYDIS_MNEMONIC_LOOP:
  case ZYDIS_MNEMONIC_LOOPE:
  case ZYDIS_MNEMONIC_LOOPNE: return true;
  default: return false;
  }
}

/* LOOP, JCXZ and JECXZ of 16-bit code and its like.  Flags stay where they are. */
static bool counting(struct translation *t) {
  struct emitter *e = &t->e;
  bool loop = t->z->mnemonic == ZYDIS_MNEMONIC_LOOP, half = t->i->adsize == 2;
  s32 target = branch_target(t), next = t->start + t->i->next;
  if (!loop && t->z->mnemonic != ZYDIS_MNEMONIC_JCXZ && t->z->mnemonic != ZYDIS_MNEMONIC_JECXZ) return false;
  if (!t->f.host) t_save_flags(t);
  if (loop) {
    if (half) em8(e, 0x66);
    em_mem(e, 0, 0x8d, T_HOME(RCX), EM_AT(T_HOME(RCX), -1));
  }
  em_reg(e, 0, half ? 0x0fb7 : 0x8b, H_RCX, T_HOME(RCX));
  em_align_displacement(e, 3);
  em8(e, 0xe3), em8(e, 5); /* jrcxz over the jump */
  u8 *rel32 = em_jmp(e);
  s32 where = loop ? target : next;
  if (!to_itself(t, rel32, where)) t_exit_to(t, rel32, where);
  go(t, loop ? next : target, em_jmp);
  return true;
}

/* ---- calls ---- */

/* RAX: the key of the return address. */
static bool push_return_ip(struct translation *t, unsigned n) {
  struct emitter *e = &t->e;
  u32 ip = t_ip(t, t->start + t->i->next);
  bool half = t_slot_size(t) == 2;
  struct em_mem m;
  if (ip > t->limit || !t_access(t, n, &m)) return false;
  t_lose_flags(t);
  if (half) em8(e, 0x66);
  em_mem(e, 0, 0xc7, 0, m);
  if (half)
    em8(e, ip & 0xff), em8(e, ip >> 8 & 0xff);
  else
    em32(e, ip);
  em_mov_imm32(e, H_RAX, ip);
  t_make_key(t);
  return true;
}

/* n: which memory access of the instruction it is.  RAX: the return address. */
static bool push_return(struct translation *t, unsigned n) {
  struct emitter *e = &t->e;
  struct em_mem m;
  if (t->segmented) return push_return_ip(t, n);
  if (!t_access(t, n, &m)) return false;
  t_lose_flags(t);
  em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.page)));
  t_lea(t, H_RAX, EM_AT(H_RAX, t->start + t->i->next));
  t_store_word(t, m, H_RAX);
  return true;
}

static bool call_direct(struct translation *t) {
  if (!push_return(t, 0)) return false;
  t_move_rsp(t, -t_slot_size(t));
  t_store_flags(t);
  open_frame(t);
  go(t, branch_target(t), em_call);
  land(t);
  return true;
}

/* RAX: where to. */
static bool indirect_target(struct translation *t) {
  const ZydisDecodedOperand *op = &t->ops[0];
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    t_store_flags(t);
    t_load_slot(t, H_RAX, m);
  } else {
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
    t_store_flags(t);
    em_reg(&t->e, !t->m32, t_slot_size(t) == 2 ? 0x0fb7 : 0x8b, H_RAX, t_read(t, (unsigned)ZydisRegisterGetId(op->reg.value), H_RAX));
  }
  if (t->segmented) t_make_key(t);
  return true;
}

/* The target is looked up before anything is pushed: where it is not found, the interpreter starts from the beginning. */
static bool call_indirect(struct translation *t) {
  struct emitter *e = &t->e;
  struct t_slow *s = t_slow(t);
  u8 *miss[2];
  if (!indirect_target(t)) return false;
  em_store(e, EM_GS(offsetof(struct x86_vcpu, code.scratch)), H_RAX);
  t_find_target(t, miss);
  s->from[s->n_from++] = miss[0];
  s->from[s->n_from++] = miss[1];
  em_load(e, H_RCX, TARGET(code));
  em_store(e, EM_GS(offsetof(struct x86_vcpu, code.callee)), H_RCX);
  if (!push_return(t, t->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY)) return false;
  t_move_rsp(t, -t_slot_size(t));
  open_frame(t);
  em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.scratch)));
  enter_target(t, 2, EM_GS(offsetof(struct x86_vcpu, code.callee)));
  land(t);
  return true;
}

static bool jump_indirect(struct translation *t) {
  if (!indirect_target(t)) return false;
  t_indirect(t, 0);
  return true;
}

static bool near_return(struct translation *t) {
  s32 more = t->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && t->z->operand_count_visible ? (s32)(u16)t->i->imm : 0;
  struct em_mem m;
  if (!t_access(t, 0, &m)) return false;
  t_store_flags(t);
  t_load_slot(t, H_RAX, m);
  if (t->segmented) t_make_key(t);
  if (!more) close_frame(t);
  t_indirect(t, t_slot_size(t) + more);
  return true;
}

/* ---- far branches in real and virtual-8086 mode, with operands of 16 bits ---- */

static struct em_mem cs_field(size_t field) { return EM_GS(offsetof(struct x86_vcpu, seg) + SEG_CS * sizeof(struct x86_seg) + field); }

/* To the instruction pointer in ECX of the segment in EAX.  There is no way back: CS changes. */
static void go_far(struct translation *t) {
  struct emitter *e = &t->e;
  u8 *miss[2];
  em_store(e, EM_GS(offsetof(struct x86_vcpu, regs) + 8 * X86_REG_RIP), H_RCX);
  t_load_segment(t, SEG_CS);
  em_reg(e, 1, 0xc1, 4, H_RAX), em8(e, 32); /* shl rax */
  em_store(e, EM_GS(offsetof(struct x86_vcpu, code.cs_key)), H_RAX);
  em_reg(e, 1, 0x0b, H_RAX, H_RCX); /* or rax, rcx */
  t_find_target(t, miss);
  t_enter_target(t);
  em_here(e, miss[0]);
  em_here(e, miss[1]);
  t_leave(t);
}

/* CALL and JMP with the address in the instruction. */
static bool far_direct(struct translation *t) {
  const ZydisDecodedOperand *to = &t->ops[0];
  struct emitter *e = &t->e;
  struct em_mem m;
  if (to->type != ZYDIS_OPERAND_TYPE_POINTER) return false;
  if (t->z->mnemonic == ZYDIS_MNEMONIC_CALL) {
    if (!t_access(t, 0, &m)) return false;
    t_store_flags(t);
    em_mem(e, 0, 0x0fb7, H_RAX, cs_field(offsetof(struct x86_seg, sel))); /* movzx */
    em_reg(e, 0, 0xc1, 4, H_RAX), em8(e, 16);                            /* shl eax */
    em8(e, 0x0d), em32(e, (u16)t_ip(t, t->start + t->i->next));          /* or eax */
    em_mem(e, 0, 0x89, H_RAX, m);
    t_move_rsp(t, -4);
  } else {
    t_store_flags(t);
  }
  em_mov_imm32(e, H_RCX, to->ptr.offset & 0xffff);
  em_mov_imm32(e, H_RAX, to->ptr.segment);
  go_far(t);
  return true;
}

static bool far_return(struct translation *t) {
  s32 more = t->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && t->z->operand_count_visible ? (s32)(u16)t->i->imm : 0;
  struct emitter *e = &t->e;
  struct em_mem m;
  if (!t_access(t, 0, &m)) return false;
  t_store_flags(t);
  em_mem(e, 0, 0x8b, H_RAX, m);
  t_move_rsp(t, 4 + more);
  em_reg(e, 0, 0x0fb7, H_RCX, H_RAX);       /* movzx ecx, ax */
  em_reg(e, 0, 0xc1, 5, H_RAX), em8(e, 16); /* shr eax */
  go_far(t);
  return true;
}

static bool far_branch(struct translation *t) {
  if (!t->m16 || !(t->b->mode & X86_MODE_REAL) || t->i->opsize != 2) return false;
  return t->z->mnemonic == ZYDIS_MNEMONIC_RET ? far_return(t) : far_direct(t);
}

bool t_branch(struct translation *t) {
  const ZydisDecodedInstruction *z = t->z;
  bool direct = z->operand_count_visible && t->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return far_branch(t);
  if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_NONE) return false;
  if ((z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE && !t->m16) || (t->segmented && direct && target_ip(t) > t->limit)) return false;
  switch (z->mnemonic) {
  case ZYDIS_MNEMONIC_JMP:
    return direct ? jump(t) : jump_indirect(t);
  case ZYDIS_MNEMONIC_CALL:
    return direct ? call_direct(t) : call_indirect(t);
  case ZYDIS_MNEMONIC_RET:
    return near_return(t);
  default:
    if (t_is_counting(z->mnemonic)) return t->segmented && counting(t);
    return z->meta.category == ZYDIS_CATEGORY_COND_BR && conditional(t);
  }
}
