/* Exceptions that lead to one another without end: the vCPU still leaves when it is asked to, its state tells where it stands,
 * and KVM_CAP_X86_NOTIFY_VMEXIT (api.rst 7.33) counts such times or ends KVM_RUN. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include "harness.h"

#define AC     0x40000u
#define CR0_AM 0x40000ull
#define STACK  (GUEST_DATA + 0x101) /* misaligned */
#define IST    (GUEST_IST1 - 0x1000)

#define ENABLED KVM_X86_NOTIFY_VMEXIT_ENABLED
#define USER    KVM_X86_NOTIFY_VMEXIT_USER

static void on_signal(int sig) {}

static struct guest *new_guest(u64 notify) {
  sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_signal}, NULL);
  return notify ? guest_new_cap(KVM_CAP_X86_NOTIFY_VMEXIT, notify) : guest_new();
}

/* Ring 3 with its own handler of #AC, both on a stack that gives #AC. */
static struct guest *alignment(u64 notify) {
  struct guest *g = new_guest(notify);
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, (u8[]){0x50, 0x90, 0x90, 0x90, 0xb0, 9, 0xe6, GUEST_PORT},
             8); /* push %eax; nops; and at 4 the handler: a report */
  guest_idt32(g, 17, 0xe, 3, SEL_CODE32U, GUEST_CODE + 4);
  struct kvm_sregs s = guest_sregs(g);
  s.cr0 |= CR0_AM;
  s.cs.selector = SEL_CODE32U;
  s.ss.selector = s.ds.selector = s.es.selector = SEL_DATA3;
  s.cs.dpl = s.ss.dpl = s.ds.dpl = s.es.dpl = 3;
  guest_set_sregs(g, &s);
  struct kvm_regs r = guest_regs(g);
  r.rflags = 2 | AC;
  r.rsp = STACK;
  guest_set_regs(g, &r);
  return g;
}

static void set_dr(struct guest *g, u64 at, u64 dr7) {
  struct kvm_debugregs d;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
  d.db[0] = at;
  d.dr7 = dr7 | 0x400;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
}

/* A data breakpoint in the frame of #DB, always at the same place: delivering it hits it. */
static struct guest *breakpoint(u64 notify) {
  struct guest *g = new_guest(notify);
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, (u8[]){0x89, 0x03, 0x90}, 3); /* mov %eax, (%rbx); nop */
  guest_write(g, GUEST_TSS + 0x24 + 8, 8, IST);           /* IST2 */
  guest_idt64(g, 1, 0xe, 0, SEL_CODE64, GUEST_STUBS + 16, 2);
  struct kvm_regs r = guest_regs(g);
  r.rbx = IST - 8;
  guest_set_regs(g, &r);
  set_dr(g, IST - 8, 1 | 0xd0000); /* four bytes, writes */
  return g;
}

/* KVM_RUN for about that long; false: it ended before by an exit. */
static bool run_for(struct guest *g, unsigned ms) {
  struct itimerval end = {.it_value.tv_usec = 1000 * (int)ms, .it_interval.tv_usec = 1000 * (int)ms}, off = {0};
  setitimer(ITIMER_REAL, &end, NULL);
  int r = guest_ioctl(g->vcpu, KVM_RUN, NULL), error = errno;
  setitimer(ITIMER_REAL, &off, NULL);
  if (!r) return false;
  CHECK_EQ(error, EINTR);
  return true;
}

/* Then the reason is taken away, and the exception arrives. */
static void alignment_ends(struct guest *g) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  CHECK_EQ(e.exception.injected, 1);
  CHECK_EQ(e.exception.nr, 17);
  CHECK_EQ(e.exception.has_error_code, 1);
  CHECK_EQ(e.exception.error_code, 0);
  struct kvm_regs r = guest_regs(g);
  CHECK_EQ(r.rip, GUEST_CODE);
  CHECK_EQ(r.rsp, STACK);
  r.rsp = STACK - 1;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 9);
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_stack(g, 1, 4), GUEST_CODE);
  CHECK_EQ(guest_stack(g, 3, 4) & (AC | 0x10000), AC | 0x10000);
}

static void breakpoint_ends(struct guest *g) {
  set_dr(g, 0, 0);
  CHECK_EQ(guest_next(g), TRAP(1));
}

static const struct {
  struct guest *(*start)(u64 notify);
  void (*ends)(struct guest *g);
} cases[] = {{alignment, alignment_ends}, {breakpoint, breakpoint_ends}};

static void signal_ends_it(void) {
  for (unsigned n = 0; n < 2; n++) {
    struct guest *g = cases[n].start(0);
    CHECK(run_for(g, 30));
    CHECK(run_for(g, 30));
    CHECK_EQ(guest_stat(g->vcpu, "notify_window_exits"), 0);
    cases[n].ends(g);
    guest_free(g);
  }
}

static void exits(void) {
  for (unsigned n = 0; n < 2; n++) {
    struct guest *g = cases[n].start(ENABLED | USER | 100000ull << 32);
    for (unsigned k = 1; k <= 3; k++) {
      g->run->notify.flags = ~0u;
      CHECK(!run_for(g, 60000));
      CHECK_EQ(g->run->exit_reason, KVM_EXIT_NOTIFY);
      CHECK_EQ(g->run->notify.flags, 0);
      CHECK_EQ(guest_stat(g->vcpu, "notify_window_exits"), k);
    }
    cases[n].ends(g);
    guest_free(g);
  }
}

static void counts(void) {
  struct guest *g = alignment(ENABLED);
  CHECK(run_for(g, 30));
  CHECK(guest_stat(g->vcpu, "notify_window_exits") > 0);
  alignment_ends(g);
  guest_free(g);
}

/* A guest that works through exceptions is left alone, however small the window. */
static void progress(void) {
  struct guest *g = new_guest(ENABLED | USER);
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, (u8[]){0x0f, 0x0b, 0xb0, 7, 0xe6, GUEST_PORT}, 6); /* ud2; report */
  for (unsigned n = 0; n < 100; n++) {
    CHECK_EQ(guest_next(g), TRAP(6));
    struct kvm_regs r = guest_regs(g);
    r.rip = GUEST_CODE;
    guest_set_regs(g, &r);
  }
  CHECK_EQ(guest_stat(g->vcpu, "notify_window_exits"), 0);
  guest_free(g);
}

static void refused(void) {
  struct guest *g = guest_new();
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_NOTIFY_VMEXIT), 1);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_NOTIFY_VMEXIT, ENABLED), -1); /* there is a vCPU */
  CHECK_EQ(errno, EINVAL);
  int vm = guest_ioctl(g->sys, KVM_CREATE_VM, NULL); /* until the process ends */
  static const struct {
    u64 arg;
    int error;
  } args[] = {{0, EINVAL},          {USER, EINVAL}, {ENABLED | 4, EINVAL},
              {1ull << 32, EINVAL}, {ENABLED, 0},   {~0ull << 32 | ENABLED | USER, 0}};
  for (unsigned n = 0; n < sizeof(args) / sizeof(args[0]); n++) {
    struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_NOTIFY_VMEXIT, .args = {args[n].arg}};
    int r = guest_ioctl(vm, KVM_ENABLE_CAP, &cap);
    CHECK_EQ(r ? errno : 0, args[n].error);
  }
  guest_free(g);
}

GUEST_MAIN({"signal", signal_ends_it}, {"exits", exits}, {"counts", counts}, {"progress", progress}, {"refused", refused})
