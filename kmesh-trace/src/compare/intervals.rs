//! Exact confidence intervals without an assumption about the distribution: of a share (Clopper-Pearson) and of a
//! quantile (order statistics). Both follow from the binomial distribution.

/// Returns the natural logarithm of `n!`.
fn ln_factorial(n: u64) -> f64 {
    if n < 32 {
        return (2..=n).map(|factor| (factor as f64).ln()).sum();
    }
    // Stirling's series. From 32 on its error is below 1e-13.
    let n = n as f64;
    n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + 1.0 / (12.0 * n) - 1.0 / (360.0 * n * n * n)
}

/// Returns the probability of at most `k` successes of `n`, each with probability `p`.
pub fn binomial_at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    let ln_of = |k: u64| {
        ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k) + k as f64 * p.ln() + (n - k) as f64 * (1.0 - p).ln()
    };
    // The terms fall on both sides of the mode, so the sum of the smaller tail ends early.
    let is_lower_tail = (k as f64) < n as f64 * p;
    let (mut at, mut term, mut sum) = match is_lower_tail {
        true => (k, ln_of(k).exp(), 0.0),
        false => (k + 1, ln_of(k + 1).exp(), 0.0),
    };
    while term > sum * 1e-17 && term > 0.0 {
        sum += term;
        if is_lower_tail {
            if at == 0 {
                break;
            }
            term *= at as f64 / (n - at + 1) as f64 * (1.0 - p) / p;
            at -= 1;
        } else {
            if at == n {
                break;
            }
            term *= (n - at) as f64 / (at + 1) as f64 * p / (1.0 - p);
            at += 1;
        }
    }
    if is_lower_tail {
        sum.min(1.0)
    } else {
        (1.0 - sum).max(0.0)
    }
}

/// Returns the interval that contains the true share with a probability of at least `1 - alpha`.
pub fn share(count: u64, of: u64, alpha: f64) -> (f64, f64) {
    // The lower limit is the share at which `count` or more have a probability of alpha / 2.
    let low = match count {
        0 => 0.0,
        _ => root(|p| 1.0 - binomial_at_most(count - 1, of, p) < alpha / 2.0),
    };
    let high = match count >= of {
        true => 1.0,
        false => root(|p| binomial_at_most(count, of, p) > alpha / 2.0),
    };
    (low, high)
}

/// Returns the share up to which `is_below` holds, which must be monotonic.
fn root(is_below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if is_below(middle) { &mut low } else { &mut high }) = middle;
    }
    (low + high) / 2.0
}

/// Returns the interval that contains the true quantile with a probability of at least `1 - alpha`. `None`: there are
/// too few values to limit it on both sides.
pub fn quantile(sorted: &[f64], part: f64, alpha: f64) -> Option<(f64, f64)> {
    let n = sorted.len() as u64;
    // The number of values below the quantile is binomial. With `low` values below it, the true quantile is less than
    // sorted[low] with a probability of at most alpha / 2.
    let low = first(n, |below| binomial_at_most(below, n, part) > alpha / 2.0);
    let high = first(n, |below| 1.0 - binomial_at_most(below, n, part) <= alpha / 2.0)?;
    let low = low?.checked_sub(1)?;
    Some((sorted[low as usize], sorted[high as usize]))
}

/// Returns the smallest number below `n` for which `holds`, which must be monotonic.
fn first(n: u64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    (low < n).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= expected.abs() * 1e-6 + 1e-12
    }

    #[test]
    fn binomial_matches_known_values() {
        let cases = [
            (0, 10, 0.5, 1.0 / 1024.0),
            (5, 10, 0.5, 0.623_046_875),
            (9, 10, 0.5, 1023.0 / 1024.0),
            (2, 20, 0.1, 0.676_926_804_3),
            (50, 100, 0.5, 0.539_794_618_7),
            (10, 10, 0.3, 1.0),
            (0, 1_000_000, 0.000_001, 0.367_879_257_2),
        ];
        for (k, n, p, expected) in cases {
            let value = binomial_at_most(k, n, p);
            assert!(is_near(value, expected), "{k} of {n} at {p}: {value}");
        }
    }

    #[test]
    fn share_matches_clopper_and_pearson() {
        // The limits for no success are known in closed form: 1 - (alpha / 2)^(1 / n).
        let (low, high) = share(0, 20, 0.05);
        assert!(
            low == 0.0 && is_near(high, 1.0 - 0.025_f64.powf(1.0 / 20.0)),
            "{low} {high}"
        );
        let (low, high) = share(5, 10, 0.05);
        assert!(
            (low - 0.187_086).abs() < 1e-5 && (high - 0.812_914).abs() < 1e-5,
            "{low} {high}"
        );
    }

    #[test]
    fn quantile_interval_has_its_coverage() {
        // For the median of 20 values at 95 %, tables give the 6th and the 15th value.
        let sorted: Vec<_> = (1..=20).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.5, 0.05), Some((6.0, 15.0)));
        assert_eq!(quantile(&sorted, 0.95, 0.05), None);
        assert_eq!(quantile(&[], 0.5, 0.05), None);
    }
}
