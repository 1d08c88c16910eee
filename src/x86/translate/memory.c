/* Memory operands: linear address, the look into the software TLB, and the operand that the host's instruction gets.
 *
 * A TLB entry holds what to add to a linear address.  The first access of a group (plan.h) checks that all bytes of the group lie in one page that may be
 * accessed, and keeps that number; the others only add it.
 */
#include "x86/translate/private.h"

_Static_assert(sizeof(struct x86_tlb_entry) == 32 && X86_TLB_BITS == 12, "look_up()");

bool t_address(struct translation *t, struct em_mem *m) {
  const struct x86_insn *i = t->i;
  s64 disp = t->m32 ? (s32)i->disp : i->disp;
  if (i->adsize != t->word) return false;
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

static struct em_mem segment_field(unsigned seg, size_t field) {
  return EM_GS(offsetof(struct x86_vcpu, seg) + (seg & ~(unsigned)PLAN_SEGMENT) * sizeof(struct x86_seg) + field);
}
static struct em_mem segment_base(unsigned seg) { return segment_field(seg, offsetof(struct x86_seg, base)); }

/* ---- 16-bit code, and 32-bit code whose segments are not flat ---- */

/* EAX: the offset.  Flags stay. */
static void offset_of(struct translation *t, const struct plan_address *a) {
  struct em_mem m = {.base = H_NONE, .index = H_NONE, .shift = a->shift, .disp = a->disp};
  if (a->base != X86_REG_NONE) m.base = T_HOME(a->base);
  if (a->index != X86_REG_NONE) m.index = T_HOME(a->index);
  if (m.base == H_NONE && m.index == H_NONE) {
    em_mov_imm32(&t->e, H_RAX, (u32)a->disp & (a->size == 2 ? 0xffffu : 0xffffffffu));
  } else if (m.index == H_NONE && !m.disp) {
    em_reg(&t->e, 0, a->size == 2 ? 0x0fb7 : 0x8b, H_RAX, m.base); /* movzx or mov */
  } else {
    em_mem(&t->e, 0, 0x8d, H_RAX, m);
    if (a->size == 2) em_reg(&t->e, 0, 0x0fb7, H_RAX, H_RAX);
  }
}

static void linear_in(struct translation *t, const struct plan_address *a) {
  offset_of(t, a);
  em_mem(&t->e, 0, 0x03, H_RAX, segment_base(a->seg));
}

_Static_assert(offsetof(struct x86_seg, s) == offsetof(struct x86_seg, type) + 1 && offsetof(struct x86_seg, dpl) == offsetof(struct x86_seg, type) + 2 &&
                   offsetof(struct x86_seg, present) == offsetof(struct x86_seg, type) + 3,
               "check_type()");
enum { S_PRESENT = 0x01000100 };

/* Data that grows upwards, or through CS code that may be read: everything else is the interpreter's. */
static unsigned check_type(struct translation *t, unsigned seg, bool write, u8 **miss) {
  struct emitter *e = &t->e;
  unsigned n = 0;
  u32 mask = seg == SEG_CS ? 10 : write ? 14 : 12, type = seg == SEG_CS ? 10 : write ? 2 : 0;
  em_mem(e, 0, 0x8b, H_RCX, segment_field(seg, offsetof(struct x86_seg, type)));
  em_reg(e, 0, 0x81, 4, H_RCX), em32(e, S_PRESENT | mask); /* and ecx */
  em_reg(e, 0, 0x81, 7, H_RCX), em32(e, S_PRESENT | type); /* cmp ecx */
  miss[n++] = em_jcc(e, CC_NE);
  if (seg < SEG_FS) return n; /* code.c has looked at these */
  em_mem(e, 0, 0x80, 7, segment_field(seg, offsetof(struct x86_seg, unusable))), em8(e, 0);
  miss[n++] = em_jcc(e, CC_NE);
  return n;
}

/* The offset in EAX lies within the segment, and so do the bytes behind it.  In real and virtual-8086 mode code.c has seen to it that ES, CS, SS and DS have all
 * of 64 KiB.  Jumps to *miss where not; returns how many. */
static unsigned check_limit(struct translation *t, const struct plan_address *a, s32 bytes, bool write, u8 **miss) {
  struct emitter *e = &t->e;
  unsigned seg = a->seg & ~(unsigned)PLAN_SEGMENT, n = 0;
  if (t->b->mode & X86_MODE_REAL && seg < SEG_FS) {
    if (a->size == 2 && bytes == 1) return 0;
    em8(e, 0x3d), em32(e, 0x10000u - (u32)bytes); /* cmp eax */
    miss[n++] = em_jcc(e, CC_A);
    return n;
  }
  if (seg == SEG_CS && write) {
    miss[n++] = em_jmp(e);
    return n;
  }
  n += check_type(t, seg, write, &miss[n]);
  em_mem(e, 0, 0x8b, H_RCX, segment_field(seg, offsetof(struct x86_seg, limit)));
  if (bytes > 1) {
    em_reg(e, 0, 0x81, 5, H_RCX), em32(e, (u32)bytes - 1); /* sub ecx */
    miss[n++] = em_jcc(e, CC_B);
  }
  em_reg(e, 0, 0x3b, H_RAX, H_RCX);
  miss[n++] = em_jcc(e, CC_A);
  return n;
}

/* ---- all modes ---- */

/* The base: its host register, or `scratch` with it; H_NONE where there is none. */
static unsigned base_register(struct translation *t, const struct plan_address *a, unsigned scratch) {
  if (a->base == X86_REG_NONE) return H_NONE;
  if (a->base != X86_REG_RIP) return t_read(t, a->base, scratch);
  em_load(&t->e, scratch, EM_GS(offsetof(struct x86_vcpu, code.page)));
  return scratch;
}

/* RAX: the linear address.  Returns where else its lower half is, or RAX.  Flags are lost. */
static unsigned linear(struct translation *t, const struct plan_address *a) {
  struct em_mem m = {.index = H_NONE, .shift = a->shift, .disp = a->disp};
  if (t->segmented) {
    linear_in(t, a);
    return H_RAX;
  }
  m.base = (u8)base_register(t, a, H_RAX);
  if (a->index != X86_REG_NONE) m.index = (u8)t_read(t, a->index, H_RCX);
  bool plain = m.index == H_NONE && !m.disp && m.base != H_NONE;
  if (plain)
    em_reg(&t->e, !t->m32, 0x8b, H_RAX, m.base);
  else if (m.base == H_NONE && m.index == H_NONE)
    em_reg(&t->e, !t->m32, 0xc7, 0, H_RAX), em32(&t->e, (u32)a->disp);
  else
    t_lea(t, H_RAX, m);
  if (a->seg) em_mem(&t->e, !t->m32, 0x03, H_RAX, segment_base(a->seg));
  return plain && !a->seg ? m.base : H_RAX;
}

/* ECX: register >> 7; the highest bits are whatever. */
static void index_bits(struct translation *t, unsigned reg) {
  struct emitter *e = &t->e;
  if (t->c->code.bmi2) { /* rorx ecx, reg, 7 */
    em8(e, 0xc4), em8(e, 0xc3 | (reg & 8 ? 0 : 0x20)), em8(e, 0x7b), em8(e, 0xf0);
    em8(e, 0xc0 | H_RCX << 3 | (reg & 7)), em8(e, 7);
  } else {
    em_reg(e, 0, 0x8b, H_RCX, reg);          /* mov ecx, reg */
    em_reg(e, 0, 0xc1, 5, H_RCX), em8(e, 7); /* shr ecx, 7 */
  }
}

static s32 table_of(const struct translation *t) { return GS_OF(mmu.tables) + (s32)(t->right * X86_TLB_SIZE * sizeof(struct x86_tlb_entry)); }

/* RCX: where the entry is for the linear address in RAX (and in `copy`), whose offset in the page RAX has then, if all bytes lie in a page with the right
 * and the bits of `align` in the address are 0; the displacement of the jump where not. */
static u8 *find(struct translation *t, unsigned copy, s32 bytes, unsigned align, bool write) {
  struct emitter *e = &t->e;
  s32 tag = write ? offsetof(struct x86_tlb_entry, write) : offsetof(struct x86_tlb_entry, read);
  index_bits(t, copy);
  em_reg(e, 0, 0x81, 4, H_RCX), em32(e, 0x1ffe0); /* and ecx: 32 * index */
  em_mem(e, 1, 0x33, H_RAX, EM_GS_AT(H_RCX, table_of(t) + tag));
  unsigned shift = align ? (unsigned)__builtin_ctz(align + 1) : 0;
  if (shift) em_reg(e, 1, 0xc1, 1, H_RAX), em8(e, shift);                 /* ror rax: what must be 0 is on top now */
  em8(e, 0x48), em8(e, 0x3d), em32(e, (u32)(PAGE_SIZE - bytes) >> shift); /* cmp rax: the offset in the page, when it is that page */
  return em_jcc(e, CC_A);
}

/* RCX: what to add to the linear address, by its entry.  RAX stays. */
static void load_delta(struct translation *t) {
  em_load(&t->e, H_RCX, EM_GS_AT(H_RCX, table_of(t) + (s32)offsetof(struct x86_tlb_entry, delta)));
}

/* A list is followed: what is read becomes the address of the next one. */
static bool follows(const struct translation *t, const struct plan_address *a, bool write) {
  return !write && a->base < 16 && a->base != RSP && t->p->writes >> a->base & 1;
}

/* RCX: what to add; RAX is lost.  Where lists are followed, all depends on how long that takes: without a segment's base it is two cycles less. */
static u8 *look_up(struct translation *t, const struct plan_address *a, unsigned copy, s32 bytes, unsigned align, bool write) {
  u8 *miss = find(t, copy, bytes, align, write);
  if (follows(t, a, write)) {
    em_load(&t->e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.deltas) + 8 * t->right));
    em_load(&t->e, H_RCX, (struct em_mem){.base = H_RAX, .index = H_RCX});
  } else {
    load_delta(t);
  }
  return miss;
}

u8 *t_look_up(struct translation *t, unsigned at, s32 bytes, bool write) {
  em_mov(&t->e, H_RAX, at);
  u8 *miss = find(t, at, bytes, 0, write);
  load_delta(t);
  return miss;
}

static bool is_plain(const struct plan_address *a) {
  return !a->seg && a->index == X86_REG_NONE && a->base < 16 && t_mapped(a->base);
}

/* In 64-bit code: the operand, with what RCX says is to be added; it becomes part of the address where that is not a mere register's. */
static struct em_mem operand(struct translation *t, const struct plan_address *a) {
  struct emitter *e = &t->e;
  struct em_mem m = {.base = H_RCX, .index = H_NONE, .disp = a->disp};
  t->rcx = t->rax = PLAN_ALONE;
  if (a->seg) {
    em_load(e, H_RAX, segment_base(a->seg));
    em_lea(e, H_RCX, (struct em_mem){.base = H_RCX, .index = H_RAX});
  }
  unsigned base = base_register(t, a, H_RAX);
  if (base == H_RAX || (base != H_NONE && a->index != X86_REG_NONE)) {
    em_lea(e, H_RCX, (struct em_mem){.base = H_RCX, .index = (u8)(base == H_RSP ? H_NONE : base)});
    base = H_NONE;
  }
  if (a->index == X86_REG_NONE) {
    if (base != H_NONE) m.base = (u8)base, m.index = H_RCX;
    return m;
  }
  unsigned index = t_read(t, a->index, H_RAX);
  if (index == H_RAX) {
    em_lea(e, H_RCX, (struct em_mem){.base = H_RCX, .index = H_RAX, .shift = a->shift});
    return m;
  }
  m.index = (u8)index;
  m.shift = a->shift;
  return m;
}

/* ---- 32-bit code ---- */

/* FS and GS must be what needs no check but that of the offset, which may not go round within these bytes.  Jumps to *miss where not. */
static unsigned check_segment(struct translation *t, const struct plan_address *a, s32 bytes, u8 **miss) {
  struct emitter *e = &t->e;
  struct plan_address offset = *a;
  unsigned n = 0;
  if (!t->m32 || !a->seg) return 0;
  em_mem(e, 0, 0x80, 7, EM_GS(offsetof(struct x86_vcpu, seg) + a->seg * sizeof(struct x86_seg) + offsetof(struct x86_seg, flat))), em8(e, 0);
  miss[n++] = em_jcc(e, CC_E);
  if (a->base == X86_REG_NONE && a->index == X86_REG_NONE) {
    if ((u32)a->disp > (u32)-bytes) miss[n++] = em_jmp(e);
    return n;
  }
  offset.seg = 0;
  linear(t, &offset);
  em8(e, 0x3d), em32(e, (u32)-bytes); /* cmp eax */
  miss[n++] = em_jcc(e, CC_A);
  return n;
}

/* RAX: the linear address, of bytes that the segment has; jumps to *miss, *n of them, where it has not.  Returns as linear() does. */
static unsigned checked_linear(struct translation *t, const struct plan_address *a, s32 bytes, bool write, u8 **miss, unsigned *n) {
  if (!t->segmented) {
    *n += check_segment(t, a, bytes, miss + *n);
    return linear(t, a);
  }
  offset_of(t, a);
  *n += check_limit(t, a, bytes, write, miss + *n);
  em_mem(&t->e, 0, 0x03, H_RAX, segment_base(a->seg));
  return H_RAX;
}

/* RCX: the host address, from what is to be added to the linear one. */
static void add_linear(struct translation *t, const struct plan_address *a) {
  if (!t->m32) return;
  linear(t, a);
  em_lea(&t->e, H_RCX, (struct em_mem){.base = H_RCX, .index = H_RAX});
}

/* Offsets go round at 4 GiB, but not within a page: the register has the host address of the lowest byte that was checked. */
static struct em_mem operand32(const struct translation *t, const struct plan_access *a, unsigned lowest) {
  bool alone = a->group == PLAN_ALONE || (a->last && !(t->ready >> a->group & 1));
  return EM_AT(lowest, alone ? 0 : (s32)((u32)a->at.disp + (u32)a->moved - (u32)t->plan.group[a->group].at.disp));
}

/* ---- checks ---- */

/* The check of a group whose registers have moved. */
static void check_group(struct translation *t, struct t_slow *s, unsigned group, s32 moved, unsigned align) {
  const struct plan_group *g = &t->plan.group[group];
  struct plan_address at = g->at;
  at.disp = (s32)((u32)at.disp - (u32)moved);
  unsigned copy = checked_linear(t, &at, g->span, g->write, s->scattered, &s->n_scattered);
  s->scattered[s->n_scattered++] = look_up(t, &at, copy, g->span, align, g->write);
  add_linear(t, &at);
  em_store(&t->e, t_delta(group), H_RCX);
}

static void check(struct translation *t, const struct plan_access *a) {
  struct t_slow *s = t_slow(t);
  t_lose_flags(t);
  t->rcx = t->rax = PLAN_ALONE;
  t->lost_plan |= a->group != PLAN_ALONE && !a->leads;
  if (a->group == PLAN_ALONE || a->last) {
    unsigned align = a->size & t->align ? 0 : t->align;
    unsigned copy = checked_linear(t, &a->at, a->size, a->write, s->from, &s->n_from);
    s->from[s->n_from++] = look_up(t, &a->at, copy, a->size, align, a->write);
    add_linear(t, &a->at);
    t->align ^= align;
    return;
  }
  const struct plan_group *g = &t->plan.group[a->group];
  unsigned align = ((a->at.disp + a->moved - g->at.disp) | g->span) & (s32)t->align ? 0 : t->align;
  check_group(t, s, a->group, a->moved, align);
  t->aligned[a->group] = (u8)align;
  t->align ^= align;
  t->ready |= 1u << a->group;
  t->rcx = a->group;
}

/* A page that has been looked at.  Returns the register with its delta: two pages in turn have one each. */
static unsigned known(struct translation *t, const struct plan_access *a) {
  if (t->align <= t->aligned[a->group] && !((a->at.disp + a->moved - t->plan.group[a->group].at.disp) & (s32)t->align)) t->align = 0;
  bool both = t->rax_free && !t->align && (t->m32 || is_plain(&a->at));
  if (t->rcx == a->group) return H_RCX;
  if (both && t->rax == a->group) return H_RAX;
  bool second = both && t->rcx != PLAN_ALONE;
  em_load(&t->e, second ? H_RAX : H_RCX, t_delta(a->group));
  *(second ? &t->rax : &t->rcx) = a->group;
  return second ? H_RAX : H_RCX;
}

/* Behind an access that may end in the interpreter, which does the whole instruction, nothing may be found out that later ones rely on. */
static void lead_first(struct translation *t) {
  const struct plan_access *second = &t->p->access[1];
  unsigned align = t->align;
  t->align = 0;
  if (t->p->n_access == 2 && second->leads && !second->last) check(t, second);
  t->align = align;
}

bool t_access(struct translation *t, unsigned n, struct em_mem *m) {
  if (n >= t->p->n_access) return false;
  const struct plan_access *a = &t->p->access[n];
  if (!a->size) return false;
  if (!n) lead_first(t);
  unsigned delta = H_RCX;
  if (a->group != PLAN_ALONE && t->ready >> a->group & 1)
    delta = known(t, a);
  else
    check(t, a);
  if (t->m32)
    *m = operand32(t, a, delta);
  else if (is_plain(&a->at))
    *m = (struct em_mem){.base = T_HOME(a->at.base), .index = (u8)delta, .disp = a->at.disp};
  else
    *m = operand(t, &a->at);
  return true;
}

/* The base and index lead to the word with bit 0. */
bool t_access_bit(struct translation *t, unsigned bit, struct em_mem *m) {
  const struct plan_access *a = &t->p->access[0];
  struct em_mem scratch = EM_GS(offsetof(struct x86_vcpu, code.scratch));
  struct emitter *e = &t->e;
  unsigned shift = a->size == 8 ? 3 : a->size == 4 ? 2 : 1;
  if (t->segmented || t->i->adsize != t->word || !t->p->n_access || (t->m32 && a->at.seg)) return false;
  struct t_slow *s = t_slow(t);
  t_lose_flags(t);
  linear(t, &a->at);
  unsigned number = t_read(t, bit, H_RCX);
  if (a->size == 8)
    em_mov(e, H_RCX, number);
  else
    em_reg(e, 1, a->size == 4 ? 0x63 : 0x0fbf, H_RCX, number); /* movsx */
  em_reg(e, 1, 0xc1, 7, H_RCX), em8(e, shift + 3);             /* sar */
  t_lea(t, H_RAX, (struct em_mem){.base = H_RAX, .index = H_RCX, .shift = (u8)shift});
  em_store(e, scratch, H_RAX);
  s->from[s->n_from++] = look_up(t, &a->at, H_RAX, a->size, 0, a->write);
  em_mem(e, 1, 0x03, H_RCX, scratch);
  *m = (struct em_mem){.base = H_RCX, .index = H_NONE};
  return true;
}
