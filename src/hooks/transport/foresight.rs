//! Which groups come next.

/// How many orders are remembered: a VAE has one for encoding and one for decoding, with tiles and without.
const REMEMBERED: usize = 4;

/// The orders in which groups came in earlier runs, and what that says about this one.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    /// Orders of whole runs, the last one first.
    known: Vec<Vec<usize>>,
    /// The groups of this run so far.
    seen: Vec<usize>,
    /// Which of the known orders this run has followed so far.
    followed: Option<usize>,
}

impl Foresight {
    /// A run begins.
    pub(super) fn begin(&mut self) {
        self.seen.clear();
        self.followed = (!self.known.is_empty()).then_some(0);
    }

    /// `group` begins.
    pub(super) fn enter(&mut self, group: usize) {
        self.seen.push(group);
        let at = self.seen.len() - 1;
        let follows = |known: usize| self.known.get(known).and_then(|order| order.get(at)) == Some(&group);
        if !self.followed.is_some_and(follows) {
            self.followed = self.known.iter().position(|order| order.starts_with(&self.seen));
        }
    }

    /// The `count` groups that are expected after the last one. A run that follows none of the known orders may still
    /// repeat itself, as one over tiles does, or a part of a known order.
    pub(super) fn ahead(&self, count: usize) -> Vec<usize> {
        let after = |order: &[usize], at: usize| order.iter().skip(at).take(count).copied().collect::<Vec<_>>();
        if let Some(order) = self.followed.and_then(|known| self.known.get(known)) {
            return after(order, self.seen.len());
        }
        let Some((last, before)) = self.seen.split_last() else { return vec![] };
        if let Some(at) = before.iter().rposition(|group| group == last) {
            return after(before, at + 1);
        }
        let known = self.known.iter().find_map(|order| Some((order, order.iter().position(|group| group == last)?)));
        known.map_or_else(Vec::new, |(order, at)| after(order, at + 1))
    }

    /// The run is over; its order is remembered if it ran to its end.
    pub(super) fn finish(&mut self, completed: bool) {
        let order = std::mem::take(&mut self.seen);
        if completed && !order.is_empty() {
            self.known.retain(|known| *known != order);
            self.known.insert(0, order);
            self.known.truncate(REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Foresight;

    /// What was expected after each group of a run.
    fn run(foresight: &mut Foresight, order: &[usize], count: usize) -> Vec<Vec<usize>> {
        foresight.begin();
        let enter = |&group: &usize| {
            foresight.enter(group);
            foresight.ahead(count)
        };
        let expected = order.iter().map(enter).collect();
        foresight.finish(true);
        expected
    }

    #[test]
    fn nothing_is_expected_of_the_first_run() {
        let mut foresight = Foresight::default();
        assert_eq!(run(&mut foresight, &[0, 1, 2], 1), vec![Vec::<usize>::new(); 3]);
        assert_eq!(run(&mut foresight, &[0, 1, 2], 1), [vec![1], vec![2], vec![]]);
        assert_eq!(run(&mut foresight, &[0, 1, 2], 2), [vec![1, 2], vec![2], vec![]]);
    }

    #[test]
    fn two_orders_are_told_apart_where_they_part() {
        let mut foresight = Foresight::default();
        run(&mut foresight, &[0, 1, 2, 5], 1);
        run(&mut foresight, &[0, 3, 4, 5], 1);
        assert_eq!(run(&mut foresight, &[0, 1, 2, 5], 1), [vec![3], vec![2], vec![5], vec![]]);
    }

    #[test]
    fn a_run_over_tiles_repeats_itself() {
        let mut foresight = Foresight::default();
        assert_eq!(run(&mut foresight, &[0, 1, 0, 1, 0], 1), [vec![], vec![], vec![1], vec![0], vec![1]]);
        let more = run(&mut foresight, &[0, 1, 0, 1, 0, 1], 1);
        assert_eq!(more, [vec![1], vec![0], vec![1], vec![0], vec![], vec![0]]);
    }

    #[test]
    fn a_part_of_a_known_order_is_recognised() {
        let mut foresight = Foresight::default();
        run(&mut foresight, &[0, 1, 2, 3], 1);
        assert_eq!(run(&mut foresight, &[2, 3], 1), [vec![3], vec![]]);
    }

    #[test]
    fn a_run_that_failed_teaches_nothing() {
        let mut foresight = Foresight::default();
        foresight.begin();
        foresight.enter(7);
        foresight.finish(false);
        assert_eq!(run(&mut foresight, &[7, 8], 1), vec![Vec::<usize>::new(); 2]);
    }
}
