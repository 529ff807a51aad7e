/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/patience.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <unistd.h>

#include "runtime/base/clock.h"

static int64_t later(void)
{
    return shunt_now_ns() + 1000 * SHUNT_NS_PER_S;
}

Test(patience, lasts_until_the_deadline)
{
    const _Atomic int go_on = 0;
    const int none = -1;
    struct shunt_patience p = {.deadline_ns = later()};

    cr_expect_eq(shunt_patience_check(&p, NULL), 0);
    p.abort = &go_on;
    p.cancel_fd = &none;
    cr_expect_eq(shunt_patience_check(&p, NULL), 0);
    p.deadline_ns = shunt_now_ns();
    cr_expect_eq(shunt_patience_check(&p, NULL), -ETIMEDOUT);
}

/* Whoever is told to stop hears that, not that the time is over. */
Test(patience, ends_when_told_to_stop)
{
    _Atomic int abort = 0;
    struct shunt_error err = {0};
    struct shunt_patience p = {.deadline_ns = later(), .abort = &abort};

    atomic_store(&abort, 1);
    cr_expect_eq(shunt_patience_check(&p, &err), -ECANCELED);
    cr_expect(err.code == -ECANCELED && err.text[0] != '\0');
    p.deadline_ns = 0;
    cr_expect_eq(shunt_patience_check(&p, NULL), -ECANCELED);
}

Test(patience, ends_when_a_descriptor_is_readable)
{
    struct shunt_patience p = {.deadline_ns = later()};
    int fds[2];
    char byte;

    cr_assert_eq(pipe(fds), 0);
    p.cancel_fd = &fds[0];
    cr_expect_eq(shunt_patience_check(&p, NULL), 0);
    cr_assert_eq(write(fds[1], "x", 1), 1);
    cr_expect_eq(shunt_patience_check(&p, NULL), -ECANCELED);
    cr_assert_eq(read(fds[0], &byte, 1), 1); /* nobody else has read it */
    cr_expect_eq(shunt_patience_check(&p, NULL), 0);
    close(fds[1]); /* the other end is gone: nobody could say it any more */
    cr_expect_eq(shunt_patience_check(&p, NULL), -ECANCELED);
    close(fds[0]);
}
