/* What one KVM_RUN costs above the architecture: prints nanoseconds per round trip, and with a halt and wake-up between two
 * threads. */
#include <pthread.h>
#include <stdio.h>
#include "base/evloop.h"
#include "fake_arch.h"

#define BATCH   1000u
#define BATCHES 2000u

static int halt_step(struct fake_vcpu *c) {
  (*(u64 *)c->arg)++;
  return FAKE_HALT;
}

static void *run_thread(void *arg) {
  struct machine *m = arg;
  call(m->vcpu_fd[0], KVM_RUN, NULL);
  return NULL;
}

int main(void) {
  struct machine m;
  machine_up(&m, 1);
  u64 best = ~0ull; /* the best of many short batches: other load on the machine does not count */
  for (unsigned k = 0; k < BATCHES; k++) {
    u64 start = clock_now_ns();
    for (unsigned i = 0; i < BATCH; i++) uvirt_ioctl(m.vcpu_fd[0], KVM_RUN, NULL);
    best = MIN(best, clock_now_ns() - start);
  }
  printf("run %.1f ns\n", (double)best / BATCH);

  u64 wakes = 0;
  m.vcpu[0]->step = halt_step;
  m.vcpu[0]->arg = &wakes;
  pthread_t thread;
  pthread_create(&thread, NULL, run_thread, &m);
  u64 t = clock_now_ns();
  for (u64 i = 1; i <= 20000; i++) {
    while (READ_ONCE(wakes) < i) {
    }
    m.vcpu[0]->runnable = true;
    vcpu_wake(&m.vcpu[0]->core);
  }
  printf("wake %.1f ns\n", (double)(clock_now_ns() - t) / 20000);
  vcpu_request(&m.vcpu[0]->core, REQ_EXIT);
  pthread_join(thread, NULL);

  t = clock_now_ns();
  for (unsigned i = 0; i < 5000; i++) set_slot(m.vm_fd, 1 + i, 0, (1u << 20) + i * 8192ull, 4096, m.ram);
  printf("slot %.1f ns\n", (double)(clock_now_ns() - t) / 5000);
  machine_down(&m);
  return 0;
}
