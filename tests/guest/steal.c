/* Steal time (msr.rst, MSR_KVM_STEAL_TIME) of a vCPU that computes without an exit or a halt, while another thread wants its
 * processor: at its timer's ticks the guest finds what the kernel tells of the vCPU's thread. */
#include <inttypes.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
#include "inside.h"

enum { TICK_NS = 4000000, TICKS = 60, ATTEMPTS = 8 };

static volatile struct kvm_steal_time page __attribute__((aligned(64)));
static volatile u64 page_gpa, at_start, at_tick;
static volatile u32 ticks, changes;

HANDLER on_tick(struct frame *f) {
  EXPECT_EQ(page.version & 1, 0);
  changes = changes + (page.steal != at_tick);
  at_tick = page.steal;
  ticks = ticks + 1;
  eoi();
}

static void guest_computes(void) {
  apic_on();
  pic_off();
  wrmsr(MSR_KVM_STEAL_TIME, page_gpa | KVM_MSR_ENABLED);
  apic_write(A_LVT_TIME, 0x20000 | 0x40); /* periodic; it counts nanoseconds */
  apic_write(A_TDCR, 0xb);
  for (;;) {
    report(1);
    ticks = changes = 0;
    at_start = at_tick = page.steal;
    apic_write(A_TMICT, TICK_NS);
    sti();
    while (ticks < TICKS) relax();
    cli();
    apic_write(A_TMICT, 0);
    report(2);
  }
}

/* ---- the host's side ---- */

/* Nanoseconds for which this thread could have run but did not. */
static u64 run_delay(void) {
  unsigned long long ran = 0, waited = 0;
  FILE *f = fopen("/proc/thread-self/schedstat", "re");
  CHECK(f && fscanf(f, "%llu %llu", &ran, &waited) == 2);
  if (f) fclose(f);
  return waited;
}

static atomic_bool stop;
static cpu_set_t one;

static void stay(void) {
  CHECK_EQ(pthread_setaffinity_np(pthread_self(), sizeof(one), &one), 0);
}

static void *competes(void *arg) {
  stay();
  while (!atomic_load(&stop)) {
  }
  return NULL;
}

/* The test may itself be put aside between the last tick and its own reading: then once more. */
static bool share_is_right(struct guest *g) {
  usleep(1000); /* the next entry looks at the run delay */
  u64 before = run_delay();
  CHECK_EQ(guest_next(g), 2);
  u64 delay = run_delay() - before, stolen = at_tick - at_start, apart = delay > stolen ? delay - stolen : stolen - delay;
  CHECK_EQ(guest_next(g), 1);
  bool right = delay > 50000000 && changes >= TICKS / 10 && apart <= delay / 20;
  if (!right) printf("run delay %" PRIu64 " us, steal %" PRIu64 " us in %u steps\n", delay / 1000, stolen / 1000, changes);
  return right;
}

static void shared_processor(void) {
  struct guest *g = start_function(guest_computes);
  pthread_t thread;
  inside_catch(g);
  HANDLE(g, 0x40, on_tick);
  if (access("/proc/thread-self/schedstat", R_OK)) { /* then there is none, and the guest's table does not show it */
    CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_STEAL_TIME), 0);
    CHECK(!guest_supports(g, 0x40000001, 0, KVM_FEATURE_STEAL_TIME));
    guest_free(g);
    return;
  }
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_STEAL_TIME), 1);
  CHECK(guest_supports(g, 0x40000001, 0, KVM_FEATURE_STEAL_TIME));
  page_gpa = guest_image_gpa(&page);
  CPU_ZERO(&one);
  CPU_SET((unsigned)sched_getcpu(), &one);
  stay();
  pthread_create(&thread, NULL, competes, NULL);
  CHECK_EQ(guest_next(g), 1);
  bool right = false;
  for (unsigned n = 0; n < ATTEMPTS && !right; n++) right = share_is_right(g);
  CHECK(right);
  inside_check();
  atomic_store(&stop, true);
  pthread_join(thread, NULL);
  guest_free(g);
}

GUEST_MAIN({"shared-processor", shared_processor})
