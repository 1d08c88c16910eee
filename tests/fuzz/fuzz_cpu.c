/* Fuzz target: random code in a small guest, in every mode.  Whatever it does ends in a guest fault or an exit; never in a
 * signal, a hang or an access outside guest memory. */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "../guest/harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const uint8_t *fuzz_seed_input(unsigned i, size_t *size);

enum { HEAD = 72, KEPT = 0x100000, EXITS = 40, SLICE_US = 2000 };
enum { REAL, PROTECTED16, PROTECTED32, COMPATIBILITY, LONG, LONG_USER, V86, MODES };

static struct guest *g;
static u8 *kept; /* the tables as they were */
static struct saved {
  struct kvm_sregs sregs;
  struct kvm_fpu fpu;
  struct kvm_xcrs xcrs;
  struct kvm_debugregs debug;
  struct kvm_vcpu_events events;
} saved[MODES];

static void on_alarm(int sig) {}

static void keep(unsigned mode) {
  saved[mode].sregs = guest_sregs(g);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_FPU, &saved[mode].fpu), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_XCRS, &saved[mode].xcrs), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &saved[mode].debug), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &saved[mode].events), 0);
  if (mode >= COMPATIBILITY && mode != V86)
    saved[mode].xcrs.xcrs[0].value = 0xe7, saved[mode].sregs.cr4 |= 0x40600; /* OSXSAVE, OSFXSR, OSXMMEXCPT */
}

static struct kvm_segment code(u16 sel, unsigned l, unsigned db, unsigned dpl) {
  return (struct kvm_segment){.selector = sel,
                              .limit = db || l ? ~0u : 0xffff,
                              .type = 11,
                              .present = 1,
                              .s = 1,
                              .l = l,
                              .db = db,
                              .g = db || l,
                              .dpl = dpl};
}

static void free_guest(void) {
  guest_free(g);
  free(kept);
}

static void make_guest(void) {
  g = guest_new();
  atexit(free_guest);
  guest_real(g, 0, GUEST_CODE);
  keep(REAL);
  guest_protected(g, GUEST_CODE);
  keep(PROTECTED32);
  saved[PROTECTED16] = saved[V86] = saved[PROTECTED32];
  saved[PROTECTED16].sregs.cs = code(SEL_CODE16, 0, 0, 0);
  guest_long(g, GUEST_CODE);
  keep(LONG);
  saved[COMPATIBILITY] = saved[LONG_USER] = saved[LONG];
  saved[COMPATIBILITY].sregs.cs = code(SEL_CODE32, 0, 1, 0);
  saved[LONG_USER].sregs.cs = code(SEL_CODE64U, 1, 0, 3);
  saved[LONG_USER].sregs.ss.dpl = 3;
  saved[LONG_USER].sregs.ss.selector = SEL_DATA3;
  struct kvm_segment *s = &saved[V86].sregs.cs;
  for (unsigned n = 0; n < 6; n++) s[n] = (struct kvm_segment){.limit = 0xffff, .type = 3, .present = 1, .s = 1, .dpl = 3};
  kept = malloc(KEPT);
  memcpy(kept, g->mem, KEPT);
  struct sigaction sa = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &sa, NULL);
}

static void reset(unsigned mode, const uint8_t *head) {
  struct kvm_regs r;
  memcpy(g->mem, kept, KEPT);
  memcpy(&r, head, 64);
  memset((u8 *)&r + 64, 0x11, sizeof(r) - 64);
  r.rsp = GUEST_STACK3;
  r.rip = mode == LONG_USER ? GUEST_USER : GUEST_CODE;
  r.rflags = 2 | (mode == V86 ? 0x23000 : 0) | (head[64] & 0xd5) | (head[65] & 0x4) << 8; /* arithmetic flags, DF */
  for (__u64 *p = &r.rax; p <= &r.rdi; p++)
    if (*p & 1) *p &= 0xfffff; /* often an address */
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_SREGS, &saved[mode].sregs), 0);
  guest_set_regs(g, &r);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_FPU, &saved[mode].fpu), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_XCRS, &saved[mode].xcrs), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &saved[mode].debug), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &saved[mode].events), 0);
}

/* An access that waits for the client is finished, so that the next input does not get its answer. */
static void finish(void) {
  g->run->immediate_exit = 1;
  guest_ioctl(g->vcpu, KVM_RUN, NULL);
  g->run->immediate_exit = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < HEAD + 1) return 0;
  if (!g) make_guest();
  unsigned mode = data[66] % MODES;
  reset(mode, data);
  size_t n = size - HEAD < 2048 ? size - HEAD : 2048;
  guest_load(g, mode == LONG_USER ? GUEST_USER : GUEST_CODE, data + HEAD, n);
  struct itimerval slice = {.it_value.tv_usec = SLICE_US,
                            .it_interval.tv_usec = SLICE_US}; /* again: one may hit between two runs */
  setitimer(ITIMER_REAL, &slice, NULL);
  for (unsigned k = 0; k < EXITS; k++) {
    if (guest_ioctl(g->vcpu, KVM_RUN, NULL) < 0 || g->run->exit_reason == KVM_EXIT_SHUTDOWN ||
        g->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
      break;
    if (g->run->exit_reason == KVM_EXIT_IO || g->run->exit_reason == KVM_EXIT_MMIO) continue;
    if (g->run->exit_reason == KVM_EXIT_HLT) break;
  }
  memset(&slice, 0, sizeof(slice));
  setitimer(ITIMER_REAL, &slice, NULL);
  finish();
  return 0;
}

/* Inputs to start from: each mode twice, with random code. */
const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static uint8_t input[HEAD + 200];
  if (i >= 2 * MODES) return NULL;
  uint32_t x = 12345 + i;
  for (size_t n = 0; n < sizeof(input); n++) input[n] = (uint8_t)((x = x * 1664525u + 1013904223u) >> 24);
  input[66] = (uint8_t)(i % MODES);
  *size = sizeof(input);
  return input;
}
