/* vCPUs: making them, their threads, and the loop around KVM_RUN.
 *
 * A vCPU is taken out of KVM_RUN by KICK_SIGNAL, whose handler sets kvm_run's immediate_exit: when the signal comes before the
 * thread is inside KVM_RUN, the call returns at once.  The thread clears immediate_exit before it looks at run_state, so no kick
 * is lost. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "vmm/machine/cpumodel.h"
#include "vmm/machine/machine_priv.h"

#define KICK_SIGNAL SIGUSR1

enum { CPUID_ROOM = 512, CPUID_SPARE = 16 };

static _Thread_local struct kvm_run *my_run; /* what KICK_SIGNAL acts on */

static void on_kick(int sig) {
  if (my_run) my_run->immediate_exit = 1;
}

/* ---- making ---- */

/* Asks with growing room, as KVM answers -E2BIG to a table that is too small. */
static struct kvm_cpuid2 *supported_cpuid(struct vmm *vmm, char *err) {
  struct kvm_cpuid2 *t = calloc(1, sizeof(*t) + CPUID_ROOM * sizeof(t->entries[0]));
  if (!t) {
    machine_fail(err, "out of memory");
    return NULL;
  }
  t->nent = CPUID_ROOM - CPUID_SPARE;
  int r = vmm->accel->ioctl(vmm->kvm_fd, KVM_GET_SUPPORTED_CPUID, t);
  if (r >= 0) return t;
  free(t);
  machine_fail(err, "KVM_GET_SUPPORTED_CPUID failed: %s", strerror(-r));
  return NULL;
}

static struct kvm_cpuid2 *make_cpuid(struct vmm *vmm, char *err) {
  struct cpu_model model;
  char why[CPU_ERR_LEN];
  struct kvm_cpuid2 *t = supported_cpuid(vmm, err);
  if (!t) return NULL;
  bool tsc_deadline = vmm->accel->ioctl(vmm->kvm_fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  migration_offer(vmm, t);
  if (cpu_model_parse(vmm->config->cpu, &model, why) == 0 &&
      cpu_model_apply(&model, t, CPUID_ROOM, vmm->config->cpus, tsc_deadline, why) == 0) {
    migration_offered(vmm, t);
    return t;
  }
  machine_fail(err, "%s", why);
  free(t);
  return NULL;
}

static int create_one(struct vmm *vmm, struct vcpu *vcpu, struct kvm_cpuid2 *cpuid, char *err) {
  vcpu->vmm = vmm;
  vcpu->fd = vm_ioctl(vmm, KVM_CREATE_VCPU, (void *)(uintptr_t)vcpu->index);
  if (vcpu->fd < 0) return machine_fail(err, "vCPU %u cannot be created: %s", vcpu->index, strerror(-vcpu->fd));
  vmm->vcpu_count++;
  vcpu->run = vmm->accel->mmap(vmm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
  if (!vcpu->run) return machine_fail(err, "the run area of vCPU %u cannot be mapped: %s", vcpu->index, strerror(errno));
  cpu_model_number(cpuid, vcpu->index);
  int r = vcpu_ioctl(vcpu, KVM_SET_CPUID2, cpuid);
  if (r < 0) return machine_fail(err, "the accelerator refuses the CPU model: %s", strerror(-r));
  return vcpu_power_on(vcpu, cpu_model_phys_bits(cpuid), err);
}

int vcpus_create(struct vmm *vmm, char *err) {
  struct kvm_cpuid2 *cpuid = make_cpuid(vmm, err);
  int r = -1;
  vmm->vcpus = cpuid ? calloc(vmm->config->cpus, sizeof(*vmm->vcpus)) : NULL;
  if (cpuid && !vmm->vcpus)
    machine_fail(err, "out of memory");
  else if (cpuid)
    r = 0;
  for (unsigned i = 0; r == 0 && i < vmm->config->cpus; i++) {
    vmm->vcpus[i].index = i;
    r = create_one(vmm, &vmm->vcpus[i], cpuid, err);
  }
  free(cpuid);
  return r;
}

void vcpus_destroy(struct vmm *vmm) {
  for (unsigned i = 0; i < vmm->vcpu_count; i++) {
    struct vcpu *vcpu = &vmm->vcpus[i];
    if (vcpu->run) munmap(vcpu->run, vmm->run_size);
    vmm->accel->close(vcpu->fd);
    vcpu_snapshot_free(vcpu->power_on);
  }
  free(vmm->vcpus);
  vmm->vcpus = NULL;
  vmm->vcpu_count = 0;
}

/* ---- the threads ---- */

/* Lets the kernel finish the port or memory access that the vCPU left KVM_RUN for, without running the guest (api.rst, KVM_RUN:
 * the state is consistent only after re-entry). */
static void finish_access(struct vcpu *vcpu) {
  vcpu->run->immediate_exit = 1;
  vcpu_ioctl(vcpu, KVM_RUN, NULL);
  vcpu->run->immediate_exit = 0;
}

/* Waits while the machine is paused.  False when the thread is to end. */
static bool wait_for_go(struct vcpu *vcpu) {
  struct vmm *vmm = vcpu->vmm;
  pthread_mutex_lock(&vmm->run_lock);
  vmm->parked++;
  pthread_cond_broadcast(&vmm->run_cond);
  while (atomic_load(&vmm->run_state) == RUN_PAUSE) pthread_cond_wait(&vmm->run_cond, &vmm->run_lock);
  vmm->parked--;
  bool go = atomic_load(&vmm->run_state) == RUN_GO;
  pthread_mutex_unlock(&vmm->run_lock);
  return go;
}

static void reset_if_due(struct vcpu *vcpu) {
  if (!vcpu->reset_due) return;
  vcpu->reset_due = false;
  int r = vcpu_reset(vcpu);
  if (r < 0) {
    char reason[128];
    snprintf(reason, sizeof(reason), "the state of vCPU %u cannot be set: %s", vcpu->index, strerror(-r));
    vmm_end(vcpu->vmm, VMM_END_ERROR, reason);
  }
}

static void run_once(struct vcpu *vcpu) {
  int r = vcpu_ioctl(vcpu, KVM_RUN, NULL);
  if (r == 0) {
    vcpu_handle_exit(vcpu);
  } else if (r != -EINTR && r != -EAGAIN) {
    char reason[128];
    snprintf(reason, sizeof(reason), "KVM_RUN of vCPU %u failed: %s", vcpu->index, strerror(-r));
    vmm_end(vcpu->vmm, VMM_END_ERROR, reason);
  }
}

static void *vcpu_main(void *arg) {
  struct vcpu *vcpu = arg;
  struct vmm *vmm = vcpu->vmm;
  sigset_t kick;
  my_run = vcpu->run;
  sigemptyset(&kick);
  sigaddset(&kick, KICK_SIGNAL);
  pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
  for (;;) {
    vcpu->run->immediate_exit = 0;
    if (atomic_load(&vmm->run_state) != RUN_GO) {
      finish_access(vcpu);
      if (!wait_for_go(vcpu)) return NULL;
    } else {
      reset_if_due(vcpu);
      run_once(vcpu);
    }
  }
}

static int start_one(struct vcpu *vcpu) {
  char name[16];
  vcpu->reset_due = true;
  int r = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
  if (r) return r;
  vcpu->started = true;
  snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
  pthread_setname_np(vcpu->thread, name);
  return 0;
}

/* The threads begin paused. */
int vcpus_start(struct vmm *vmm, char *err) {
  struct sigaction sa = {.sa_handler = on_kick};
  sigset_t kick;
  sigemptyset(&sa.sa_mask);
  sigaction(KICK_SIGNAL, &sa, NULL);
  sigemptyset(&kick);
  sigaddset(&kick, KICK_SIGNAL);
  pthread_sigmask(SIG_BLOCK, &kick, NULL); /* in threads without a vCPU */
  for (unsigned i = 0; i < vmm->vcpu_count; i++) {
    int r = start_one(&vmm->vcpus[i]);
    if (r) return machine_fail(err, "the thread of vCPU %u cannot be started: %s", i, strerror(r));
  }
  return 0;
}

static void kick_all(struct vmm *vmm) {
  for (unsigned i = 0; i < vmm->vcpu_count; i++)
    if (vmm->vcpus[i].started) pthread_kill(vmm->vcpus[i].thread, KICK_SIGNAL);
}

void vcpus_pause(struct vmm *vmm) {
  unsigned running = 0;
  for (unsigned i = 0; i < vmm->vcpu_count; i++) running += vmm->vcpus[i].started;
  atomic_store(&vmm->run_state, RUN_PAUSE);
  kick_all(vmm);
  pthread_mutex_lock(&vmm->run_lock);
  while (vmm->parked < running) pthread_cond_wait(&vmm->run_cond, &vmm->run_lock);
  pthread_mutex_unlock(&vmm->run_lock);
}

static void release(struct vmm *vmm, enum run_state state) {
  pthread_mutex_lock(&vmm->run_lock);
  atomic_store(&vmm->run_state, state);
  pthread_cond_broadcast(&vmm->run_cond);
  pthread_mutex_unlock(&vmm->run_lock);
}

void vcpus_go(struct vmm *vmm) {
  release(vmm, RUN_GO);
}

void vcpus_quit(struct vmm *vmm) {
  release(vmm, RUN_QUIT);
  kick_all(vmm);
  for (unsigned i = 0; i < vmm->vcpu_count; i++) {
    if (vmm->vcpus[i].started) pthread_join(vmm->vcpus[i].thread, NULL);
    vmm->vcpus[i].started = false;
  }
}
