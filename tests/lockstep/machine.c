/* Two guests of the same program: made like those of tests/guest, but run from inside the library, where they can be stopped
 * between blocks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../guest/harness.h"
#include "api/fd.h"
#include "lockstep.h"
#include "x86/block.h"
#include "x86/mmu/access.h"
#include "x86/mmu/io.h"
#include "x86/translate/code.h"
#include "x86/x86.h"

struct machine {
  struct guest *g;
  struct fd_object *object;
  struct x86_vcpu *c;
  enum side side;
};

static void extended_state(struct guest *g) {
  struct kvm_sregs s = guest_sregs(g);
  struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = 7}}};
  s.cr4 |= 1u << 18; /* OSXSAVE */
  guest_set_sregs(g, &s);
  guest_ioctl(g->vcpu, KVM_SET_XCRS, &x);
}

/* The program's image may be used by both rings; the last pages of the heap appear a second time, when they are asked for. */
static void map(struct guest *g) {
  extern char __executable_start[], _end[];
  u64 first = (u64)(uintptr_t)__executable_start & ~0xfffull, end = ((u64)(uintptr_t)_end + 0xfff) & ~0xfffull;
  guest_map_image(g);
  guest_map(g, first, 0x10000000, end - first, P_W | P_U);
  guest_map(g, WORK_AT, WORK_AT, (sizeof(struct work) + 0xfff) & ~0xfffull, P_W | P_U);
  guest_map(g, LAZY_AT, 0, LAZY_PAGES * 0x1000, 0);
}

static void traps(struct guest *g) {
  guest_idt64(g, 0, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)trap_divide, 0);
  guest_idt64(g, 6, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)trap_undefined, 0);
  guest_idt64(g, 14, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)trap_page_fault, 0);
  guest_idt64(g, 0x80, 0xe, 3, SEL_CODE64, (u64)(uintptr_t)trap_call, 0);
}

/* The entries of the lazy pages: there, but not present. */
static void unmap_lazy(struct guest *g) {
  u64 table = g->cr3;
  for (unsigned shift = 39; shift > 12; shift -= 9) table = guest_read(g, table + 8 * (LAZY_AT >> shift & 511), 8) & ~0xfffull;
  for (unsigned n = 0; n < LAZY_PAGES; n++) guest_write(g, table + 8 * n, 8, 0);
}

struct machine *machine_new(enum side side, const struct program *p) {
  struct machine *m = calloc(1, sizeof(*m));
  setenv("UVIRT_ENGINE", side == INTERPRETER ? "interpreter" : "translator", 1);
  m->side = side;
  m->g = guest_new();
  guest_long(m->g, (u64)(uintptr_t)program_start);
  extended_state(m->g);
  map(m->g);
  traps(m->g);
  unmap_lazy(m->g);
  struct kvm_regs r = guest_regs(m->g);
  r.rdi = WORK_AT;
  r.rsi = (u64)(uintptr_t)p->run;
  r.rsp -= 0x200; /* above: what traps.S keeps */
  r.rsp -= 8;
  guest_set_regs(m->g, &r);
  m->object = fd_get(m->g->vcpu);
  m->c = x86_vcpu(m->object->vcpu);
  vm_memory_changed(m->c->core.vm);
  vcpu_enter(&m->c->core);
  return m;
}

void machine_free(struct machine *m) {
  x86_mxcsr_sync(m->c);
  x86_code_end(m->c);
  vcpu_leave(&m->c->core);
  fd_put(m->object);
  guest_free(m->g);
  free(m);
}

struct x86_vcpu *machine_vcpu(struct machine *m) {
  return m->c;
}
struct work *machine_work(struct machine *m) {
  return (struct work *)(void *)(m->g->mem + WORK_AT);
}
const u8 *machine_memory(struct machine *m, u64 *size) {
  *size = GUEST_MEM;
  return m->g->mem;
}

/* What the loop of KVM_RUN does between blocks. */
static enum event after(struct machine *m, int r) {
  struct x86_vcpu *c = m->c;
  struct kvm_run *run = c->core.run;
  while (r == X86_FAULT) r = x86_deliver_fault(c);
  u64 requests = atomic_exchange(&c->core.requests, 0);
  if (requests & BIT(REQ_TLB_FLUSH)) x86_mmu_flush_all(c, true);
  if (requests & BIT(REQ_PROTECT)) x86_blocks_protected(c);
  vcpu_requests_done(&c->core);
  if (r == X86_OK && (requests & BIT(REQ_EVENT))) r = x86_take_events(c);
  if (c->triple_fault) return BROKEN;
  if (r == X86_OK && c->io.n_writes) r = x86_io_writes_exit(c);
  if (r == X86_OK) return RUNS;
  c->io.lin_ip = x86_linear_ip(c); /* whose answer is awaited */
  if (r != X86_EXIT || run->exit_reason != KVM_EXIT_IO) return BROKEN;
  return run->io.port == CHECK_PORT ? CHECKPOINT : run->io.port == END_PORT ? END : BROKEN;
}

/* The answer to the last exit, as the next KVM_RUN has it. */
static int complete(struct x86_vcpu *c) {
  int (*fn)(struct x86_vcpu *) = c->complete_io;
  c->complete_io = NULL;
  return fn ? fn(c) : X86_OK;
}

/* A loop stops after its first instruction with c->stop set; translated code does not look at it, but leaves at the end of a
 * block that is not linked. */
enum event machine_step(struct machine *m) {
  if (m->c->complete_io || atomic_load(&m->c->core.requests)) return after(m, complete(m->c));
  m->c->code.link = 0;
  m->c->stop = 1;
  return after(m, x86_run_blocks(m->c));
}

/* Whoever was stopped on the way compares its blocks with memory again, as after an exit to a client. */
enum event machine_run(struct machine *m) {
  enum event e = after(m, complete(m->c));
  while (e == RUNS) {
    e = after(m, x86_run_blocks(m->c));
    if (e == RUNS) vm_memory_changed(m->c->core.vm);
  }
  return e;
}

void machine_kick(struct machine *m) {
  vcpu_request(&m->c->core, REQ_SYNC);
}
