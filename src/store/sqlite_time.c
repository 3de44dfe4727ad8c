/*
 * Times as they stand in the database: UTC text with microseconds. The proleptic
 * Gregorian calendar by Howard Hinnant's days_from_civil ("chrono-compatible low-level
 * date algorithms"), so neither the time zone nor the C library's locks take part. Any
 * process.
 */
#include <string.h>

#include "store/sqlite.h"

#define US_PER_S  INT64_C(1000000)
#define S_PER_DAY INT64_C(86400)

static int64_t days_from_civil(int64_t y, int64_t m, int64_t d)
{
    y -= m <= 2;
    int64_t era = y / 400;
    int64_t yoe = y - era * 400;
    int64_t doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    int64_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;

    return era * 146097 + doe - 719468;
}

static void civil_from_days(int64_t days, int64_t *y, int64_t *m, int64_t *d)
{
    int64_t z = days + 719468;
    int64_t era = z / 146097;
    int64_t doe = z - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    int64_t mp = (5 * doy + 2) / 153;

    *d = doy - (153 * mp + 2) / 5 + 1;
    *m = mp < 10 ? mp + 3 : mp - 9;
    *y = yoe + era * 400 + (*m <= 2);
}

static void put_digits(char *out, int64_t v, int n)
{
    while (n-- > 0) {
        out[n] = (char)('0' + v % 10);
        v /= 10;
    }
}

void sqlite_time_format(int64_t us, char out[SQLITE_TIME_LEN + 1])
{
    int64_t s = us / US_PER_S;
    int64_t in_day = s % S_PER_DAY;
    int64_t y, m, d;

    civil_from_days(s / S_PER_DAY, &y, &m, &d);
    memcpy(out, "0000-00-00 00:00:00.000000", SQLITE_TIME_LEN + 1);
    put_digits(out, y, 4);
    put_digits(out + 5, m, 2);
    put_digits(out + 8, d, 2);
    put_digits(out + 11, in_day / 3600, 2);
    put_digits(out + 14, in_day / 60 % 60, 2);
    put_digits(out + 17, in_day % 60, 2);
    put_digits(out + 20, us % US_PER_S, 6);
}

bool sqlite_time_parse(const char *s, size_t n, int64_t *us)
{
    static const char form[] = "dddd-dd-dd dd:dd:dd.dddddd";
    int64_t field[7] = {0};
    int k = 0;

    if (n != SQLITE_TIME_LEN)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (form[i] != 'd') {
            if (s[i] != form[i])
                return false;
            k++;
        } else if (s[i] >= '0' && s[i] <= '9') {
            field[k] = field[k] * 10 + (s[i] - '0');
        } else {
            return false;
        }
    }
    if (field[1] < 1 || field[1] > 12 || field[2] < 1 || field[2] > 31 || field[3] > 23 ||
        field[4] > 59 || field[5] > 59)
        return false;
    int64_t days = days_from_civil(field[0], field[1], field[2]);

    *us =
        (((days * 24 + field[3]) * 60 + field[4]) * 60 + field[5]) * US_PER_S + field[6];
    return true;
}
