/* Messages to the developer, and errors traced where they are born (debug builds).
 *
 * They go to standard error, or to the file that the environment variable UVIRT_LOG names (`uvirt exec --log`).
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

/* One line, prefixed "uvirt: ".  For things the client has no other way to learn of; never for guest behaviour. */
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line for the log file; nothing where there is none.  For refused requests and the like, which the client is told of. */
void log_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef NDEBUG
#define trace_error(err) (err)
#else
/* Returns err; prints where it was born when UVIRT_TRACE is set in the environment. */
int trace_error_at(int err, const char *file, int line);
#define trace_error(err) trace_error_at(err, __FILE__, __LINE__)
#endif

#endif
