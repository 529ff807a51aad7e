/* SPDX-License-Identifier: Apache-2.0
 *
 * planted leak|overflow|undefined|race
 *
 * Commits one error on purpose, so that a sanitizer job proves that it would report one.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int shared;

static void *write_shared(void *arg)
{
    (void)arg;
    for (int i = 0; i < 100000; i++)
        shared++;
    return NULL;
}

static int race(void)
{
    pthread_t threads[2];

    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, write_shared, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return shared;
}

static int overflow(void)
{
    char *volatile p = malloc(4);
    int value;

    if (!p)
        return 0;
    value = p[4];
    free(p);
    return value;
}

static int undefined(void)
{
    int volatile most = 0x7fffffff;

    return most + 1;
}

static int leak(void)
{
    char *volatile p = malloc(100);

    if (p)
        p[0] = 1;
    p = NULL;
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*commit)(void);
    } errors[] = {{"race", race}, {"overflow", overflow}, {"undefined", undefined}, {"leak", leak}};

    for (size_t i = 0; argc == 2 && i < sizeof(errors) / sizeof(errors[0]); i++)
        if (!strcmp(argv[1], errors[i].name)) {
            printf("%d\n", errors[i].commit());
            return 0;
        }
    fprintf(stderr, "usage: planted leak|overflow|undefined|race\n");
    return 2;
}
