/* Runs a case in the engine: a vCPU at CPL 3 in 64-bit (or 32-bit compatibility) mode whose page tables show the arena where the
 * host has it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/fault.h"
#include "core/memslot.h"
#include "diff.h"
#include "x86/block.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/access.h"
#include "x86/translate/code.h"
#include "x86/x86.h"

#define TABLES_GPA 0x100000ull
#define TABLES     6u
#define LOW_CODE   0x60000u /* the code ... */
#define LOW_ARENA  0x30000u /* ... and the arena once more, where selectors of virtual-8086 mode reach it */

u8 *engine_arena;
bool engine_v86, engine_real;
static u8 *guest_arena; /* the same pages, as the guest's memory has them */
static struct x86_vcpu *cpu, *placed[ENGINE_KINDS];
static struct x86_cpuid *cpuid;
static bool translated; /* UVIRT_ENGINE=translator */

/* The architecture without its chips and MSRs: nothing here needs them. */
static int vm_create_diff(struct vm *v, unsigned long type) {
  int r = x86_blocks_create(x86_vm(v));
  return r ? r : x86_code_create(x86_vm(v));
}
static void vm_destroy_diff(struct vm *v) {
  x86_blocks_destroy(x86_vm(v));
  x86_code_destroy(x86_vm(v));
}
static int vcpu_create_diff(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  int r = x86_cpuid_create(c);
  if (!r) r = x86_mmu_create(c);
  if (!r) r = x86_pmu_create(c);
  x86_code_vcpu_init(c);
  c->jcache = calloc(1u << X86_JCACHE_BITS, sizeof(*c->jcache));
  return c->jcache ? r : -ENOMEM;
}
static void vcpu_destroy_diff(struct vcpu *v) {
  x86_cpuid_destroy(x86_vcpu(v));
  x86_mmu_destroy(x86_vcpu(v));
  x86_pmu_destroy(x86_vcpu(v));
  free(x86_vcpu(v)->jcache);
}
static bool runnable_diff(struct vcpu *v) {
  return true;
}
static const struct arch_ops arch = {
    .name = "diff",
    .vm_size = sizeof(struct x86_vm),
    .vcpu_size = sizeof(struct x86_vcpu),
    .max_vcpus = 1,
    .max_vcpu_id = 1,
    .address_spaces = 1,
    .vm_create = vm_create_diff,
    .vm_destroy = vm_destroy_diff,
    .vcpu_create = vcpu_create_diff,
    .vcpu_destroy = vcpu_destroy_diff,
    .vcpu_runnable = runnable_diff,
};

static void die(const char *what) {
  fprintf(stderr, "diff: %s\n", what);
  exit(2);
}

static u8 *allocate(u64 size) {
  return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void map_slot(struct vm *vm, unsigned id, gpa_t gpa, u64 size, u8 *p) {
  struct kvm_userspace_memory_region m = {
      .slot = id, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)(uintptr_t)p};
  if (vm_set_memory_region(vm, &m)) die("memory slot");
}

/* Four-level tables: user pages, for the arena and (read-only) the code area. */
static void make_tables(u64 *t) {
  enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40 };
  u64 *pml4 = t, *pdpt = t + 512, *pd = t + 1024, *pt = t + 1536, *code = t + 2048, *low = t + 2560;
  pml4[0] = (TABLES_GPA + PAGE_SIZE) | P | W | U | A;
  pdpt[0] = (TABLES_GPA + 2 * PAGE_SIZE) | P | W | U | A;
  pd[ARENA_BASE >> 21] = (TABLES_GPA + 3 * PAGE_SIZE) | P | W | U | A;
  pd[CODE_BASE >> 21] = (TABLES_GPA + 4 * PAGE_SIZE) | P | W | U | A;
  pd[0] = (TABLES_GPA + 5 * PAGE_SIZE) | P | W | U | A;
  for (unsigned p = 0; p < CODE_SIZE >> PAGE_SHIFT; p++) code[p] = (CODE_BASE + p * PAGE_SIZE) | P | U | A | D;
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] != PAGE_GONE)
      pt[p] = (ARENA_BASE + (ARENA_PAGES - 1 - p) * PAGE_SIZE) | P | U | A | D | (arena_map[p] == PAGE_RW ? W : 0) | BIT(63);
  for (unsigned p = 0; p < CODE_SIZE >> PAGE_SHIFT && engine_v86; p++) low[(LOW_CODE >> PAGE_SHIFT) + p] = code[p];
  for (unsigned p = 0; p < ARENA_PAGES && engine_v86; p++) low[(LOW_ARENA >> PAGE_SHIFT) + p] = pt[p];
}

static void set_features(struct x86_vcpu *c) {
  struct kvm_cpuid_entry2 *entries = calloc(X86_CPUID_MAX_ENTRIES, sizeof(*entries));
  u32 n = 0;
  if (!entries || x86_cpuid_supported(entries, X86_CPUID_MAX_ENTRIES, &n) || x86_cpuid_set(c, entries, n)) die("CPUID");
  cpuid = c->cpuid;
}

static void set_segments(struct x86_vcpu *c, unsigned mode) {
  struct x86_seg data = {.limit = 0xffffffffu, .sel = 0x2b, .type = 3, .s = 1, .dpl = 3, .present = 1, .db = 1, .g = 1};
  if (mode == 16 || diff_based)
    data = (struct x86_seg){.base = ARENA_BASE, .limit = engine_v86 ? 0xffff : ARENA_SIZE - 1, .sel = 0x0f, .type = 3, .s = 1, .dpl = 3, .present = 1, .db = mode == 32};
  for (unsigned n = 0; n < 6; n++) {
    c->seg[n] = data;
    if (engine_v86) c->seg[n].sel = (u16)(LOW_ARENA / 16 + (n == SEG_SS || n == SEG_DS ? 0 : 5 * n)), c->seg[n].base = c->seg[n].sel * 16u;
  }
  c->seg[SEG_CS].type = 11;
  c->seg[SEG_CS].sel = mode == 64 ? 0x33 : mode == 32 && !diff_based ? 0x23 : 0x07;
  c->seg[SEG_CS].db = mode == 32;
  c->seg[SEG_CS].l = mode == 64;
  if (mode == 16 || diff_based) c->seg[SEG_CS].base = CODE_BASE, c->seg[SEG_CS].limit = engine_v86 ? 0xffff : CODE_LIMIT16;
  if (engine_v86 && !engine_real) c->seg[SEG_CS].base = LOW_CODE, c->seg[SEG_CS].sel = LOW_CODE / 16;
  c->seg[SEG_FS].unusable = mode != 64 && !engine_v86;
  c->seg[SEG_GS].unusable = mode == 16 && !engine_v86;
  c->seg[SEG_GS].base = DIFF_GS_BASE;
  if (mode == 32) c->seg[SEG_GS].sel = DIFF_GS, c->seg[SEG_GS].limit = 0xffffffffu, c->seg[SEG_GS].g = 1;
  for (unsigned n = 0; n < 6; n++) x86_seg_update(&c->seg[n]);
}

static void set_mode(struct x86_vcpu *c, unsigned mode) {
  set_segments(c, mode);
  c->tr = (struct x86_seg){.unusable = 1, .type = 11};
  c->ldtr.unusable = 1;
  c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
  c->cr3 = TABLES_GPA;
  c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
  c->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX;
  c->xcr0 = x86_xcr0_supported();
  c->rflags = 2 | FL_IF | (engine_v86 ? FL_VM | FL_IOPL : 0);
  if (engine_real) c->cr0 &= ~(u64)(CR0_PE | CR0_PG), c->efer = 0, c->rflags &= ~(u64)FL_VM;
  x86_mmu_mode_changed(c);
  x86_mode_changed(c);
}

void engine_set_mode(unsigned mode) { set_mode(cpu, mode); }

/* The arena's pages lie the other way round in guest memory: what goes on behind the end of one is not the next. */
static void make_arena(void) {
  int fd = memfd_create("diff-arena", 0);
  if (fd < 0 || ftruncate(fd, ARENA_SIZE)) die("arena");
  guest_arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  engine_arena = mmap(NULL, ARENA_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (guest_arena == MAP_FAILED || engine_arena == MAP_FAILED) die("arena");
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (mmap(engine_arena + p * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)(ARENA_PAGES - 1 - p) * (off_t)PAGE_SIZE) == MAP_FAILED)
      die("arena");
  close(fd);
}

static struct x86_vcpu *make_vcpu(u8 *code, u8 *tables) {
  struct vm *vm;
  struct vcpu *v;
  if (vm_create(&arch, 0, &vm) || vcpu_create(vm, 0, &v)) die("cannot make a VM");
  if (!engine_real) map_slot(vm, 0, TABLES_GPA, TABLES * PAGE_SIZE, tables);
  map_slot(vm, 1, ARENA_BASE, ARENA_SIZE, guest_arena);
  map_slot(vm, 2, CODE_BASE, CODE_SIZE, code);
  if (engine_real) map_slot(vm, 3, LOW_ARENA, ARENA_SIZE, guest_arena);
  set_features(x86_vcpu(v));
  vcpu_enter(v);
  return x86_vcpu(v);
}

void engine_init(u8 *code) {
  u8 *tables = allocate(TABLES * PAGE_SIZE);
  if (tables == MAP_FAILED) die("memory");
  make_arena();
  make_tables((u64 *)tables);
  cpu = make_vcpu(code, tables);
  translated = getenv("UVIRT_ENGINE") && !strcmp(getenv("UVIRT_ENGINE"), "translator");
}

/* What x86_run_blocks() does with one instruction's result. */
static void finish(struct x86_vcpu *c, const struct x86_insn *i, int flow, struct diff_state *out) {
  out->vector = -1;
  out->error = 0;
  out->cr2 = 0;
  switch (flow) {
  case X86_BRANCH:
    break;
  case X86_OK:
  case X86_END:
    c->rip = x86_next_ip(c, i);
    break;
  case X86_FAULT:
    out->vector = c->fault.vector;
    out->error = c->fault.has_error ? c->fault.error : 0;
    if (c->fault.vector == VEC_PF) out->cr2 = c->fault.payload;
    if (c->fault.trap) c->rip = x86_next_ip(c, i);
    break;
  default:
    out->vector = 1000 + flow; /* an exit: nothing in the arena asks for one */
  }
  out->ip = c->rip;
}

static void load(struct x86_vcpu *c, const struct diff_case *k) {
  memcpy(c->regs, k->in.gpr, sizeof(k->in.gpr));
  c->rip = k->at - diff_code_base(k->mode);
  bool watch = (c->rflags ^ k->in.rflags) & (FL_AC | FL_TF);
  if (engine_v86) c->rflags = k->in.rflags | (engine_real ? 0 : FL_VM) | FL_IOPL, set_segments(c, 16);
  else c->rflags = k->in.rflags;
  if (watch) x86_mode_changed(c);
  c->stop = 0;
  c->core.requests = 0; /* nobody acts on them here */
  c->int_shadow = 0;
  memset(&c->io, 0, sizeof(c->io)); /* in real mode some is missing */
  if (k->ext) ext_load(c, &k->in);
}

bool engine_decodes(const u8 *code) {
  struct x86_decode_ctx ctx = {.mode = cpu->mode & X86_MODE_SIZE, .cpuid = cpuid, .vm = x86_vm_of(cpu)};
  struct x86_insn i = {0};
  return x86_decode(&ctx, code, 15, &i) > 0 && i.fn != x86_exec_ud;
}

bool engine_flags(const struct diff_case *k, u8 *read, u8 *written) {
  struct x86_decode_ctx ctx = {.mode = cpu->mode & X86_MODE_SIZE, .cpuid = cpuid, .vm = x86_vm_of(cpu)};
  struct x86_insn i = {0};
  x86_decode(&ctx, k->code, sizeof(k->code), &i);
  *read = i.flags_read;
  *written = i.flags_written;
  return i.fn != x86_exec_ud;
}

static int last_instruction(struct x86_vcpu *c, const struct x86_insn *i) {
  return X86_END;
}

/* The instruction as a translated block of its own.  false: it has to be interpreted. */
static bool run_translated(struct x86_vcpu *c, const struct diff_case *k, const struct x86_insn *i, int *flow) {
  static struct {
    struct x86_block b;
    struct x86_insn insn[2];
  } one;
  static u8 bytes[16];
  if (!translated) return false;
  memcpy(bytes, k->code, sizeof(bytes) - 1);
  one.b = (struct x86_block){.gpa = k->at, .gpa2 = ~0ull, .mode = c->mode & X86_MODE_SIZE, .len = i->len, .n = 1, .bytes = bytes};
  one.b.insn[0] = *i;
  one.b.insn[1] = (struct x86_insn){.fn = last_instruction, .off = i->len, .next = i->len};
  return x86_code_run_once(c, &one.b, flow);
}

static void end_translated(struct x86_vcpu *c, const struct x86_insn *i, int flow, struct diff_state *out) {
  u64 ip = c->rip;
  finish(c, i, flow == X86_OK ? X86_BRANCH : flow, out);
  if (flow != X86_FAULT || !c->fault.trap) out->ip = c->rip = ip;
}

void engine_run(const struct diff_case *k, struct diff_state *out) {
  struct x86_vcpu *c = cpu;
  struct x86_decode_ctx ctx = {.mode = c->mode & X86_MODE_SIZE, .cpuid = cpuid, .vm = x86_vm_of(c)};
  struct x86_insn i;
  int flow;
  memset(&i, 0, sizeof(i));
  load(c, k);
  int len = x86_decode(&ctx, k->code, sizeof(k->code), &i);
  if (len <= 0) die("decoder asks for more bytes than there are");
  i.len = (u8)len;
  i.next = (u16)len;
  bool done = false;
  do done = run_translated(c, k, &i, &flow);
  while (done && flow == X86_RESTART);
  if (done) {
    end_translated(c, &i, flow, out);
  } else {
    c->cur = &i;
    do flow = i.fn(c, &i);
    while (flow == X86_RESTART);
    finish(c, &i, flow, out);
  }
  c->cur = NULL;
  memcpy(out->gpr, c->regs, sizeof(out->gpr));
  out->rflags = c->rflags;
  if (k->ext) ext_save(c, out);
}

/* ---- sequences ---- */

void engine_start_sequences(u8 *code, unsigned mode) {
  static const char *const names[ENGINE_KINDS] = {"interpreter", "translator"};
  for (unsigned kind = 0; kind < ENGINE_KINDS; kind++) {
    u8 *tables = allocate(TABLES * PAGE_SIZE);
    if (tables == MAP_FAILED) die("memory");
    make_tables((u64 *)tables);
    setenv("UVIRT_ENGINE", names[kind], 1);
    placed[kind] = make_vcpu(code, tables);
    placed[kind]->code.once = true; /* faults are compared, not delivered */
    set_mode(placed[kind], mode);
  }
  fault_install();
}

/* The way out in the engine: the jump's target is nowhere, or the far jump finds no descriptor; INT3 finds no gate. */
static void normalise_end(const struct diff_case *k, struct diff_state *out) {
  u64 linear = out->ip + diff_code_base(k->mode);
  bool fetch = out->vector == VEC_PF && out->cr2 == linear, at_exit = out->ip == host_exit_address() || linear - (CODE_BASE + CODE_SIZE - 16) < 16;
  bool far = k->mode != 64 && out->vector == VEC_GP && linear == k->end;
  if (!at_exit && !far && !fetch && !(out->vector == VEC_GP && host_is_int3(out->ip))) return;
  if (at_exit || far) out->ip = DIFF_END;
  out->vector = -1;
  out->error = 0;
  out->cr2 = 0;
}

static struct x86_vcpu *running;
static void stop(void) { vcpu_request(&running->core, REQ_EXIT); }

/* What the loop of KVM_RUN does between blocks, without events. */
static int run_until_end(struct x86_vcpu *c) {
  for (;;) {
    int r = x86_run_blocks(c);
    u64 requests = atomic_exchange(&c->core.requests, 0);
    if (r != X86_OK) return r;
    if (c->triple_fault) { /* INT3 without an IDT */
      c->triple_fault = false;
      return x86_gp0(c);
    }
    if (requests & BIT(REQ_EXIT)) return -1;
    if (requests & BIT(REQ_TLB_FLUSH)) x86_mmu_flush_all(c, true);
    if (requests & BIT(REQ_PROTECT)) x86_blocks_protected(c);
    vcpu_requests_done(&c->core);
  }
}

/* As KVM_RUN does it: the state is that before the instruction that touched memory which the client has taken away. */
static int run_guarded(struct x86_vcpu *c) {
  struct fault_guard guard;
  int r;
  if (!fault_try(&guard)) {
    guard.arg = c;
    guard.recover = x86_code_recover;
    r = run_until_end(c);
    fault_end(&guard);
  } else {
    x86_mxcsr_lost(c, guard.fault_mxcsr);
    x86_blocks_abandon(c);
    r = DIFF_HOLE - DIFF_ENDLESS - 1;
  }
  return r;
}

static void hide(unsigned page, int protection) {
  mprotect(guest_arena + (ARENA_PAGES - 1 - page) * PAGE_SIZE, PAGE_SIZE, protection);
}

static void save(struct x86_vcpu *c, const struct diff_case *k, int r, struct diff_state *out) {
  x86_mxcsr_sync(c);
  x86_code_end(c);
  *out = (struct diff_state){.vector = r == X86_FAULT ? c->fault.vector : DIFF_ENDLESS + 1 + r, .ip = c->rip, .rflags = c->rflags};
  if (r == X86_FAULT && c->fault.has_error) out->error = c->fault.error;
  if (r == X86_FAULT && c->fault.vector == VEC_PF) out->cr2 = c->fault.payload;
  memcpy(out->gpr, c->regs, sizeof(out->gpr));
  if (k->ext) ext_save(c, out);
  normalise_end(k, out);
}

static int run_watched(struct x86_vcpu *c, int (*run)(struct x86_vcpu *c)) {
  vm_memory_changed(c->core.vm);
  host_watch(stop);
  int r = run(c);
  host_watch(NULL);
  return r;
}

void engine_run_placed(enum engine_kind kind, const struct diff_case *k, struct diff_state *out) {
  struct x86_vcpu *c = running = placed[kind];
  load(c, k);
  save(c, k, run_watched(c, run_until_end), out);
}

bool engine_run_with_hole(enum engine_kind kind, const struct diff_case *k, unsigned hole, struct diff_state *stopped, struct diff_state *out) {
  struct x86_vcpu *c = running = placed[kind];
  load(c, k);
  hide(hole, PROT_NONE);
  int r = run_watched(c, run_guarded);
  hide(hole, PROT_READ | PROT_WRITE);
  bool hit = r == DIFF_HOLE - DIFF_ENDLESS - 1;
  save(c, k, r, stopped);
  if (hit) save(c, k, run_watched(c, run_until_end), out);
  else *out = *stopped;
  return hit;
}

bool engine_same_segments(void) {
  struct x86_seg s[2][6];
  for (unsigned kind = 0; kind < ENGINE_KINDS; kind++) {
    memcpy(s[kind], placed[kind]->seg, sizeof(s[kind]));
    for (unsigned n = 0; n < 6; n++) s[kind][n].flat = 0; /* may say less than it could */
  }
  return !memcmp(s[0], s[1], sizeof(s[0]));
}

void engine_cool(u32 pages) {
  struct x86_vcpu *c = placed[ENGINE_TRANSLATOR];
  for (unsigned n = 0; n < ARENA_PAGES; n++)
    if (pages >> n & 1) x86_mmu_flush_page(c, ARENA_BASE + n * PAGE_SIZE), x86_mmu_flush_page(c, LOW_ARENA + n * PAGE_SIZE);
  memset(c->code.delta, 0x5a, sizeof(c->code.delta));
}

void engine_forget(void) {
  for (unsigned kind = 0; kind < ENGINE_KINDS; kind++) x86_blocks_flush(x86_vm_of(placed[kind]));
}

static struct x86_block *block_at(u64 lin) {
  struct x86_vcpu *c = placed[ENGINE_TRANSLATOR];
  if (engine_v86 && !engine_real) lin += LOW_CODE - CODE_BASE;
  struct x86_jcache_entry *e = x86_jcache_slot(c, lin);
  return e->lin == lin && e->gen == x86_code_generation(c) ? e->block : NULL;
}

void engine_warm(u64 at, unsigned len) {
  for (u64 lin = at; lin < at + len; lin++) {
    struct x86_block *b = block_at(lin);
    if (b) b->runs = 1000;
  }
}

unsigned engine_translated(u64 at, unsigned len) {
  unsigned n = 0;
  for (u64 lin = at; lin < at + len; lin++) {
    struct x86_block *b = block_at(lin);
    for (unsigned right = 0; b && right < 2 * TLB_COUNT; right++) n += atomic_load(&b->code[right]) != NULL;
  }
  return n;
}

void engine_reset(void) {
  x86_mxcsr_sync(running);
  x86_code_end(running);
  running->cur = NULL;
  running->stop = 0;
  fault_top = NULL;
  mprotect(guest_arena, ARENA_SIZE, PROT_READ | PROT_WRITE);
}
