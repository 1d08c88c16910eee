/* The translation of one block: entries, instructions, slow paths, exits.
 *
 * Flags.  Between blocks the arithmetic flags are in the host's flags or in memory (c->code.flags), and a block has an entry for
 * each.  Within a block the translator knows where they are: code of its own that changes the host's flags saves them first
 * (LAHF, SETO: they must be exact at every fault), and what reads them gets them back (SAHF).
 *
 * The gate.  Each entry compares one word with the block's: they differ when a request waits or the block's bytes have to be
 * compared with memory again (core/request.h).  Without touching flags that takes JRCXZ.
 */
#include "core/request.h"
#include "x86/decode/decoded.h"
#include "x86/translate/private.h"

#define CODE_MAX 32768u /* bytes of code of a block, more than any takes */

/* ---- slow paths ---- */

struct t_slow *t_slow(struct translation *t) {
  if (!t->at) {
    t->at = &t->slow[t->n_slow++];
    *t->at = (struct t_slow){.insn = t->k};
  }
  return t->at;
}

void t_slow_if(struct translation *t, unsigned cc) {
  struct t_slow *s = t_slow(t);
  s->from[s->n_from++] = em_jcc(&t->e, cc);
}

static void call(struct emitter *e, s32 pointer) {
  em_mem(e, 0, 0xff, 2, EM_GS(pointer));
}

static void at_insn(struct translation *t, unsigned k) {
  em_mov_imm64(&t->e, H_RCX, (u64)(uintptr_t)&t->b->insn[k]);
  em_mov_imm32(&t->e, H_RAX, t->segmented ? t_ip(t, t->start) : (u32)t->start);
}

static s32 interpret_routine(const struct translation *t) { return t->segmented ? GS_OF(code.interpret_at) : GS_OF(code.interpret); }

static void call_interpreter(struct translation *t, unsigned k) {
  at_insn(t, k);
  call(&t->e, interpret_routine(t));
}

void t_interpret_by(struct translation *t, s32 routine) {
  t_store_flags(t);
  at_insn(t, t->k);
  call(&t->e, routine);
  t->vectors = VECTORS_NONE;
  t->x87 = false;
}

void t_interpret(struct translation *t) {
  t->interpreted |= 1ull << t->k;
  t->ready = 0;
  t_interpret_by(t, interpret_routine(t));
}

static void compare_level(struct emitter *e, unsigned level) {
  em_mem(e, 0, 0x80, 7, EM_GS(offsetof(struct x86_vcpu, code.vectors))), em8(e, level);
}

void t_need_vectors(struct translation *t, unsigned level) {
  if (t->vectors >= level) return;
  t_lose_flags(t);
  t->rcx = t->rax = PLAN_ALONE;
  compare_level(&t->e, level);
  struct t_slow *s = t_slow(t);
  s->load_from = em_jcc(&t->e, CC_B);
  s->load_back = t->e.p;
  s->load_level = (u8)level;
  t->vectors = (u8)level;
}

static void exit_behind(struct translation *t, const struct t_slow *s, unsigned cc) {
  em_align_displacement(&t->e, 2);
  t_exit_to(t, em_jcc(&t->e, cc), t->start + t->b->insn[s->insn].next);
}

/* From the instruction on in the scattered copy; memory has the flags. */
static void emit_scattering(struct translation *t, const struct t_slow *s) {
  struct emitter *e = &t->e;
  for (unsigned n = 0; n < s->n_scattered; n++) em_here(e, s->scattered[n]);
  if (s->again.op != PRODUCER_NONE) {
    t_emit_flags_again(e, &s->again);
    t_emit_save_flags(e);
  }
  if (t->at_insn[s->insn].host) t_emit_restore_flags(e);
  em_jmp_to(e, t->at_insn[s->insn].start);
}

/* Its flags are saved when a slow path is taken, and when the interpreter is done. */
static void emit_slow(struct translation *t, struct t_slow *s) {
  struct emitter *e = &t->e;
  if (s->load_from) {
    em_here(e, s->load_from);
    call(e, s->load_x87 ? GS_OF(code.load_x87) : GS_OF(code.load_vectors));
    if (s->load_x87)
      t_compare_x87(e);
    else
      compare_level(e, s->load_level);
    em_patch(e, em_jcc(e, s->load_x87 ? CC_NE : CC_AE), s->load_back);
  }
  if (s->n_scattered) emit_scattering(t, s);
  if (!s->n_from && !s->load_from) return;
  for (unsigned n = 0; n < s->n_from; n++) em_here(e, s->from[n]);
  if (s->again.op != PRODUCER_NONE) {
    t_emit_flags_again(e, &s->again);
    t_emit_save_flags(e);
  }
  call_interpreter(t, s->insn);
  if (!s->back) return;
  t->f.saved = true;
  if (s->vectors) {
    call(e, GS_OF(code.load_vectors));
    compare_level(e, s->vectors);
    exit_behind(t, s, CC_B);
  }
  if (s->x87) {
    call(e, GS_OF(code.load_x87));
    t_compare_x87(e);
    exit_behind(t, s, CC_E);
  }
  if (s->host_flags) t_emit_restore_flags(e);
  if (s->rcx != PLAN_ALONE) em_load(e, H_RCX, t_delta(s->rcx));
  if (s->rax != PLAN_ALONE) em_load(e, H_RAX, t_delta(s->rax));
  em_jmp_to(e, s->back);
}

/* ---- exits ---- */

void t_exit_to(struct translation *t, u8 *rel32, s32 target) {
  t->exits[t->n_exits++] = (struct t_exit){.from = rel32, .target = target, .saved = t->f.saved};
}

static void load_rip(struct translation *t, s32 target) {
  em_load(&t->e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.page)));
  t_lea(t, H_RAX, EM_AT(H_RAX, target));
}

static void set_rip(struct translation *t, s32 target) {
  struct emitter *e = &t->e;
  if (t->segmented)
    em_mov_imm32(e, H_RAX, t_ip(t, target));
  else
    load_rip(t, target);
  em_store(e, EM_GS(offsetof(struct x86_vcpu, regs) + 8 * X86_REG_RIP), H_RAX);
}

static void leave(struct translation *t, u32 link) {
  em_mem(&t->e, 0, 0xc7, 0, EM_GS(offsetof(struct x86_vcpu, code.link))), em32(&t->e, link);
  em_mem(&t->e, 0, 0xff, 4, EM_GS(offsetof(struct x86_vcpu, code.leave)));
}

void t_leave(struct translation *t) { leave(t, 0); }

/* Another page: where its code is found depends on the page tables in force. */
static void leave_page(struct translation *t, s32 target) {
  struct emitter *e = &t->e;
  u8 *miss[2];
  if (t->segmented) {
    em_mov_imm32(e, H_RAX, t_ip(t, target));
    t_make_key(t);
  } else {
    load_rip(t, target);
  }
  t_find_target(t, miss);
  t_enter_target(t);
  em_here(e, miss[0]);
  em_here(e, miss[1]);
  set_rip(t, target);
  leave(t, 0);
}

void t_load_gate(struct translation *t) {
  struct emitter *e = &t->e;
  em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, core.gate)));
  em8(e, 0x48), em8(e, 0x03), em8(e, 0x05); /* add rax, [rip + ...] */
  em32(e, (u32)((u8 *)t->code->epoch - (e->p + 4)));
}

static void emit_exit(struct translation *t, const struct t_exit *x) {
  struct emitter *e = &t->e;
  u8 *from = x->from;
  em_here(e, from);
  if (x->apart) {
    em_align_displacement(e, 1);
    from = em_jmp(e);
  }
  if (!x->saved) t_emit_save_flags(e);
  if (t->segmented && t_ip(t, x->target) > t->limit) { /* nobody goes on there */
    set_rip(t, x->target);
    leave(t, 0);
    return;
  }
  /* The last bytes may be an instruction that goes on in the next page: another mapping to ask for. */
  if (x->target < 0 || x->target > PAGE_SIZE - 15) {
    leave_page(t, x->target);
    return;
  }
  set_rip(t, x->target);
  /* Low bit: which entry to link to; the next: code for other rights. */
  leave(t, (u32)((from + e->to_rx) - x86_code_arena(t->c)->rx) << 2 | x->saved | (x->smap ? 2u : 0));
}

/* ---- entries ---- */

enum { GATE_BYTES = 16 };

static void gate_saved(struct translation *t, u8 **fail) {
  struct emitter *e = &t->e;
  em_align_displacement(e, GATE_BYTES + 2); /* not in between: the processor takes addition and jump as one */
  t->entry_saved = e->p;
  t_load_gate(t);
  *fail = em_jcc(e, CC_NE);
  t->code->gate = *fail + e->to_rx;
}

/* Without touching flags. */
static void gate_host(struct translation *t, u8 **fail) {
  struct emitter *e = &t->e;
  em_load(e, H_RCX, EM_GS(offsetof(struct x86_vcpu, core.gate)));
  em8(e, 0x48), em8(e, 0x8b), em8(e, 0x05); /* mov rax, [rip + ...] */
  em32(e, (u32)((u8 *)t->code->epoch - (e->p + 4)));
  em_lea(e, H_RCX, (struct em_mem){.base = H_RCX, .index = H_RAX});
  em8(e, 0xe3), em8(e, 5); /* jrcxz over the jump */
  *fail = em_jmp(e);
}

/* The entry that the body continues comes last. */
static void emit_entries(struct translation *t, bool body_host, u8 *fail[2]) {
  struct emitter *e = &t->e;
  fail[0] = NULL;
  if (!body_host) {
    t->entry_host = e->p;
    t_emit_save_flags(e);
  }
  gate_saved(t, &fail[1]);
  t->behind_gate = e->p;
  if (!body_host) return;
  t_emit_restore_flags(e);
  u8 *over = em_jmp(e);
  t->entry_host = e->p;
  gate_host(t, &fail[0]);
  em_here(e, over);
}

static void emit_gate_exits(struct translation *t, u8 *fail[2]) {
  struct emitter *e = &t->e;
  if (fail[0]) {
    em_here(e, fail[0]);
    t_emit_save_flags(e);
  }
  em_here(e, fail[1]);
  set_rip(t, t->start);
  leave(t, (u32)(t->code->gate - x86_code_arena(t->c)->rx) << 2 | 1);
}

/* ---- the block ---- */

/* An attempt that is given up leaves nothing behind. */
static bool attempt(struct translation *t, bool (*fn)(struct translation *t)) {
  u8 *p = t->e.p;
  bool x87 = t->x87;
  struct t_flags f = t->f;
  u8 vectors = t->vectors, rcx = t->rcx, rax = t->rax;
  u32 ready = t->ready;
  s32 rsp = t->rsp;
  unsigned n_slow = t->n_slow, n_exits = t->n_exits;
  if (fn(t)) return true;
  t->e.p = p;
  t->f = f;
  t->x87 = x87;
  t->vectors = vectors;
  t->rcx = rcx;
  t->rax = rax;
  t->rsp = rsp;
  t->keeps_rcx = t->keeps_rax = t->rax_free = false;
  t->ready = ready;
  t->n_slow = n_slow;
  t->n_exits = n_exits;
  t->at = NULL;
  return false;
}

static void one(struct translation *t) {
  bool ends = t->i->iflags & X86_I_END, branch = t->i->iflags & (X86_I_END | X86_I_MAYBE);
  t->at = NULL;
  t->align = 0;
  t->moved = 0;
  t->keeps_rcx = t->keeps_rax = t->rax_free = false;
  if (!t_x87_keeps_pointer(t)) t_flush_x87_pointer(t);
  if (attempt(t, t_system) || attempt(t, t_high_byte)) return;
  if (branch ? !attempt(t, t_branch) : !attempt(t, t_rewrite) && !attempt(t, t_special) && !attempt(t, t_string) && !attempt(t, t_x87))
    t_interpret(t);
  else
    t->ended |= ends;
}

static void place(struct translation *t) {
  t->code->place[t->code->n_places++] = (struct x86_code_place){.at = (u16)(t->e.p - t->code->start), .insn = (u8)t->k, .rsp = (s16)t->rsp};
}

/* Before anything but another push or pop. */
static void settle_rsp(struct translation *t) {
  if (t->rsp) t_move_rsp(t, t->rsp);
  t->rsp = 0;
}

static bool translate_insns(struct translation *t, const struct x86_decoded_insn *d, unsigned from) {
  for (t->k = from; t->k < t->b->n && !t->ended; t->k++) {
    t->i = &t->b->insn[t->k];
    t->z = &d[t->k].insn;
    t->ops = d[t->k].ops;
    t->p = t->scattered ? &t->alone.insn[t->k] : &t->plan.insn[t->copy * t->b->n + t->k];
    if (!t_special_delays_rsp(t)) settle_rsp(t);
    place(t);
    t->at_insn[t->k].start = t->e.p;
    t->at_insn[t->k].host = t->f.host;
    t_flags_begin(t);
    one(t);
    if (!t->keeps_rcx) t->rcx = PLAN_ALONE;
    if (!t->keeps_rax) t->rax = PLAN_ALONE;
    t->code->place[t->code->n_places - 1].flags = t_flags_end(t);
    t->code->place[t->code->n_places - 1].moved = t->moved;
    if (em_overflow(&t->e) || t->n_slow >= MAX_SLOW - 1 || t->n_exits >= MAX_EXITS - 4) return false;
    if (t->at) t->at->again = t->f.again;
    if (t->at && !t->ended) {
      t->at->back = t->e.p;
      t->at->host_flags = t->f.host;
      t->at->rcx = t->rcx;
      t->at->rax = t->rax;
      t->at->vectors = t->vectors;
      t->at->x87 = t->x87;
    }
  }
  t->k = t->b->n;
  settle_rsp(t);
  t_flush_x87_pointer(t);
  if (!t->ended) t_goto(t, t->start + t->b->len);
  return true;
}

/* The second copy: what it starts with holds whenever the last one comes back. */
static void begin_loop(struct translation *t) {
  t->rcx = t->rax = PLAN_ALONE;
  t->f.overwrites = false;
  t_lose_flags(t);
  t->loop.start = t->e.p;
  t->loop.f = t->f;
  t->loop.vectors = t->vectors;
  t->loop.x87 = t->x87;
  t->loop.ready = t->ready & t->plan.constant;
}

static bool as_the_loop_began(const struct translation *t) {
  const struct t_producer *p = &t->f.producer, *q = &t->loop.f.producer;
  return t->f.saved == t->loop.f.saved && p->op == q->op && (p->op == PRODUCER_NONE || p->insn == q->insn) && t->vectors >= t->loop.vectors &&
         t->x87 >= t->loop.x87 && !(t->loop.ready & ~t->ready);
}

void t_loop(struct translation *t) {
  struct emitter *e = &t->e;
  t->f.overwrites = false;
  t_lose_flags(t);
  t->no_loop |= !as_the_loop_began(t);
  t_load_gate(t);
  em_patch(e, em_jcc(e, CC_E), t->loop.start);
  t_save_flags(t);
  set_rip(t, t->start);
  leave(t, 0);
}

static bool translate_copies(struct translation *t, const struct x86_decoded_insn *d) {
  for (t->copy = 0; t->copy < t->copies; t->copy++) {
    if (t->copy == 1) begin_loop(t);
    if (t->copy == 1) t->ready &= t->plan.constant;
    t->ended = false;
    if (!translate_insns(t, d, 0)) return false;
  }
  return true;
}

/* From the first instruction on from which it may be entered. */
static bool translate_scattered(struct translation *t, const struct x86_decoded_insn *d) {
  unsigned first = t->b->n;
  for (unsigned n = 0; n < t->n_slow; n++)
    if (t->slow[n].n_scattered && t->slow[n].insn < first) first = t->slow[n].insn;
  if (first == t->b->n) return true;
  x86_plan(&t->alone, t->b, t->segmented, d, t->interpreted, false, 1, false);
  t->scattered = true;
  t->f = (struct t_flags){.saved = true, .first = t->f.first};
  t->vectors = VECTORS_NONE;
  t->x87 = t->x87_page = t->x87_pointer_waits = t->ended = false;
  t->ready = 0;
  t->rcx = t->rax = PLAN_ALONE;
  return translate_insns(t, d, first);
}

static bool emit(struct translation *t, const struct x86_decoded_insn *d, bool body_host) {
  u8 *fail[2];
  t->f.host = body_host;
  t->f.saved = !body_host;
  emit_entries(t, body_host, fail);
  if (!translate_copies(t, d) || !translate_scattered(t, d)) return false;
  t->k = 0;
  place(t); /* the end */
  for (unsigned n = 0; n < t->n_slow; n++) emit_slow(t, &t->slow[n]);
  t_emit_deep(t);
  emit_gate_exits(t, fail);
  for (unsigned n = 0; n < t->n_exits; n++) emit_exit(t, &t->exits[n]);
  return !em_overflow(&t->e);
}

static bool decode(const struct x86_block *b, struct x86_decoded_insn *d) {
  for (unsigned k = 0; k < b->n; k++)
    if (!b->insn[k].op || !x86_decode_again(b->mode, b->bytes + b->insn[k].off, b->insn[k].len, &d[k].insn, d[k].ops))
      memset(&d[k], 0, sizeof(d[k]));
  return true;
}

static void begin(struct translation *t, struct x86_vcpu *c, struct jit_arena *a, const struct x86_block *b, unsigned right, struct x86_code *code) {
  t->f = (struct t_flags){.first = FIRST_NONE};
  t->ended = t->lost_plan = t->no_loop = t->scattered = false;
  t->x87 = t->x87_page = t->x87_pointer_waits = false;
  t->rsp = 0;
  t->vectors = VECTORS_NONE;
  t->ready = t->interpreted = t->n_slow = t->n_exits = 0;
  t->rcx = t->rax = PLAN_ALONE;
  t->at = NULL;
  memset(t->deep, 0, sizeof(t->deep));
  t->c = c;
  t->b = b;
  t->code = code;
  t->right = right;
  t->m32 = (b->mode & X86_MODE_SIZE) != X86_MODE_64;
  t->m16 = (b->mode & X86_MODE_SIZE) == X86_MODE_16;
  t->segmented = code->segmented;
  t->page = code->page;
  t->limit = code->limit;
  t->word = t->m16 ? 2 : t->m32 ? 4 : 8;
  t->start = (s32)(b->gpa & (PAGE_SIZE - 1));
  t->e = (struct emitter){.p = a->rw + a->used, .end = a->rw + a->used + CODE_MAX, .to_rx = a->rx - a->rw};
  code->n_places = 0;
  code->start = t->e.p;
}

enum { ATTEMPTS = 4 }; /* at what to leave to the interpreter */

/* Which instructions are left to the interpreter is known when they have been tried; where the flags should be at the beginning, when all is done. */
static bool translate(struct translation *t, unsigned copies, struct x86_vcpu *c, struct jit_arena *a, const struct x86_block *b, unsigned right, struct x86_code *code,
                      const struct x86_decoded_insn *d) {
  u64 interpreted = 0;
  bool body_host = false;
  t->copies = copies;
  t->no_loop = false;
  for (unsigned n = 0; n <= ATTEMPTS; n++) {
    bool last = n == ATTEMPTS;
    if (last || t->no_loop) t->copies = 1;
    x86_plan(&t->plan, b, code->segmented, d, interpreted, !last, t->copies, last);
    begin(t, c, a, b, right, code);
    if (!emit(t, d, body_host)) return false;
    if (last || (t->interpreted == interpreted && !t->lost_plan && !t->no_loop && body_host == (t->f.first == FIRST_READ))) return true;
    interpreted |= t->interpreted;
    body_host = t->f.first == FIRST_READ;
  }
  return true;
}

/* How often the block is there.  One that jumps to itself looks at the gate once in a few rounds. */
static unsigned copies_of(const struct x86_block *b, const struct x86_decoded_insn *d, bool segmented) {
  const struct x86_decoded_insn *last = &d[b->n - 1];
  if (segmented && (b->n > 16 || t_is_counting(last->insn.mnemonic))) return 1;
  bool itself = last->insn.meta.category == ZYDIS_CATEGORY_COND_BR && last->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
                (s64)b->insn[b->n - 1].imm == 0;
  return !itself ? 1 : b->n <= 16 ? 5 : 2;
}

struct x86_code *x86_translate_block(struct translation *t, struct x86_vcpu *c, struct jit_arena *a, struct region *records, struct x86_block *b, unsigned right,
                                     bool segmented) {
  struct x86_decoded_insn *d = t->decoded;
  if (jit_arena_room(a) < CODE_MAX + 64) return NULL;
  decode(b, d);
  unsigned copies = copies_of(b, d, segmented);
  size_t size = sizeof(struct x86_code) + ((copies + 1) * b->n + 1) * sizeof(struct x86_code_place);
  struct x86_code *code = region_alloc(records, size);
  if (!code) return NULL;
  code->block = b;
  code->gpa = b->gpa;
  code->right = (u8)right;
  code->mode = b->mode;
  code->segmented = segmented;
  code->older = NULL;
  code->page = segmented ? x86_code_page(c, b) : 0;
  code->limit = segmented ? x86_code_limit(c) : 0;
  code->epoch = (u64 *)(void *)(a->rw + a->size - a->words - 8);
  if (!translate(t, copies, c, a, b, right, code, d)) {
    region_free(records, code, size);
    b->interpreted |= segmented; /* checks take more room than there is */
    return NULL;
  }
  a->words += 8;
  a->used = ALIGN_UP((size_t)(t->e.p - a->rw), (size_t)16);
  code->start += t->e.to_rx;
  code->end = t->e.p + t->e.to_rx;
  code->host = t->entry_host + t->e.to_rx;
  code->saved = t->entry_saved + t->e.to_rx;
  code->behind_gate = t->behind_gate + t->e.to_rx;
  return code;
}
