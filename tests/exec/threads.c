/* Threads made before and after the node is opened; and a program that never opens it has nothing of the library. */
#include <dirent.h>
#include <limits.h>
#include "client.h"

static unsigned count_entries(const char *path) {
  unsigned n = 0;
  DIR *d = opendir(path);
  CHECK(d);
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

/* What a library would open for itself. */
static bool is_memory_or_event(int fd) {
  char path[40], name[64] = "";
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  return readlink(path, name, sizeof(name) - 1) > 0 && (strstr(name, "memfd:") || strstr(name, "anon_inode:"));
}

static bool no_handlers(void) {
  for (int sig = 1; sig < NSIG; sig++) {
    struct sigaction a;
    if (sigaction(sig, NULL, &a) == 0 && a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN) return false;
  }
  return true;
}

/* SigCgt in /proc is what the kernel has, whatever sigaction says. */
static bool kernel_has_no_handlers(void) {
  char line[256];
  bool none = false;
  FILE *f = fopen("/proc/self/status", "r");
  CHECK(f);
  while (fgets(line, sizeof(line), f))
    if (!strncmp(line, "SigCgt:", 7)) none = strtoull(line + 7, NULL, 16) == 0;
  fclose(f);
  return none;
}

static void untouched(void) {
  CHECK(count_entries("/proc/self/task") == 1);
  for (int fd = 3; fd < 2000; fd++) CHECK(!is_memory_or_event(fd));
  CHECK(kernel_has_no_handlers());
}

static pthread_barrier_t opened;
static struct machine m;

static void *run_vcpu(void *arg) {
  pthread_barrier_wait(&opened);
  struct machine own = m;
  own.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, (long)arg);
  CHECK(own.vcpu >= 0);
  own.run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, own.vcpu, 0);
  for (int i = 0; i < 200; i++) CHECK(runs_to_halt(&own));
  int copy = dup(own.vcpu);
  close(own.vcpu);
  own.vcpu = copy;
  CHECK(runs_to_halt(&own));
  close(copy);
  return NULL;
}

/* Opening, duplicating and closing from many threads at once. */
static void *churn(void *arg) {
  for (int i = 0; i < 300; i++) {
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), copy = dup(fd);
    CHECK(fd >= 0 && copy >= 0);
    CHECK(IS_KVM(fd) && close(fd) == 0);
    CHECK(IS_KVM(copy) && close(copy) == 0);
    int null = open("/dev/null", O_RDWR);
    CHECK(write(null, "x", 1) == 1 && ioctl(null, KVM_GET_API_VERSION, 0) == -1 && errno == ENOTTY);
    close(null);
  }
  return NULL;
}

/* What the library keeps for each thread comes off its stack. */
static void small_stack(size_t size, void *(*run)(void *), void *arg) {
  pthread_t thread;
  pthread_attr_t attr;
  CHECK(pthread_attr_init(&attr) == 0 && pthread_attr_setstacksize(&attr, size) == 0);
  CHECK(pthread_create(&thread, &attr, run, arg) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  pthread_attr_destroy(&attr);
}

static void join_all(pthread_t *threads, int n) {
  for (int i = 0; i < n; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void) {
  enum { THREADS = 4 };
  pthread_t threads[2 * THREADS];
  untouched();
  CHECK(no_handlers());
  pthread_barrier_init(&opened, NULL, THREADS + 1);
  for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, run_vcpu, (void *)(1 + i)) == 0);
  m = (struct machine)MACHINE(halt_code);
  pthread_barrier_wait(&opened);
  join_all(threads, THREADS);
  pthread_barrier_init(&opened, NULL, THREADS);
  for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, run_vcpu, (void *)(1 + THREADS + i)) == 0);
  join_all(threads, THREADS);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, churn, NULL) == 0);
  join_all(threads, THREADS);
  small_stack(PTHREAD_STACK_MIN, churn, NULL);
  pthread_barrier_init(&opened, NULL, 1);
  small_stack(64 << 10, run_vcpu, (void *)(long)(1 + 2 * THREADS));
  CHECK(no_handlers()); /* the library's are not the program's business */
  return 0;
}
