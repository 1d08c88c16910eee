/* Memory operands: effective address, linear address, and the look into the software TLB. */
#include "x86/translate/private.h"

_Static_assert(sizeof(struct x86_tlb_entry) == 32 && X86_TLB_BITS == 12, "t_translate()");

bool t_address(struct translation *t, struct em_mem *m) {
  const struct x86_insn *i = t->i;
  s64 disp = i->disp;
  if (i->adsize != 8) return false;
  *m = (struct em_mem){.base = H_NONE, .index = H_NONE, .shift = i->shift};
  if (i->base == X86_REG_RIP) { /* c->code.page stays the same between blocks of a page, so code may lie anywhere */
    disp += t->start;
    em_load(&t->e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.page)));
    m->base = H_RAX;
  } else if (i->base != X86_REG_NONE) {
    m->base = (u8)t_read(t, i->base, H_RAX);
  }
  if (i->index != X86_REG_NONE) m->index = (u8)t_read(t, i->index, H_RCX);
  m->disp = (s32)disp;
  return m->disp == disp;
}

static void add_segment(struct translation *t) {
  if (t->i->seg < SEG_FS) return;
  em_mem(&t->e, 1, 0x03, H_RAX,
         EM_GS(offsetof(struct x86_vcpu, seg) + t->i->seg * sizeof(struct x86_seg) + offsetof(struct x86_seg, base)));
}

bool t_linear(struct translation *t) {
  struct em_mem m;
  if (t->i->adsize != 8) return false;
  t_lose_flags(t);
  if (!t_address(t, &m)) return false;
  if (m.index == H_NONE && !m.disp && m.base != H_NONE)
    em_mov(&t->e, H_RAX, m.base);
  else
    em_lea(&t->e, H_RAX, m);
  add_segment(t);
  return true;
}

void t_translate(struct translation *t, unsigned size, bool write) {
  struct emitter *e = &t->e;
  s32 table = GS_OF(mmu.tables) + (s32)(t->right * X86_TLB_SIZE * sizeof(struct x86_tlb_entry));
  em_reg(e, 0, 0x8b, H_RCX, H_RAX);              /* mov ecx, eax */
  em_reg(e, 0, 0xc1, 5, H_RCX), em8(e, 7);       /* shr ecx, 7 */
  em_reg(e, 0, 0x81, 4, H_RCX), em32(e, 0x1ffe0);/* and ecx: 32 * index */
  em_mem(e, 1, 0x33, H_RAX,
         EM_GS_AT(H_RCX, table + (s32)(write ? offsetof(struct x86_tlb_entry, write) : offsetof(struct x86_tlb_entry, read))));
  em8(e, 0x48), em8(e, 0x3d), em32(e, 4096 - size); /* cmp rax: the offset in the page, when it is that page */
  t_slow_if(t, CC_A);
  em_mem(e, 1, 0x03, H_RAX, EM_GS_AT(H_RCX, table + (s32)offsetof(struct x86_tlb_entry, host)));
}

bool t_operand(struct translation *t, unsigned size, bool write) {
  if (!t_linear(t)) return false;
  t_translate(t, size, write);
  return true;
}
