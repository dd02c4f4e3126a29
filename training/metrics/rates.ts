/** What context does to single items: how many it keeps right, mends or spoils. */

export interface Rates {
  /** Of the items that are right without context, the share that is right with it too; null where there are none. */
  readonly resilience: number | null;
  /** Of the items that are wrong without context, the share that is right with it; null where there are none. */
  readonly boost: number | null;
  /** The share of all items that is right in both ways: the paper's wording of resilience. */
  readonly bothOfAll: number;
  /** The share of all items that context does not turn from right to wrong. */
  readonly noDegradation: number;
  /** Items that are right without context, and those that are wrong without it. */
  readonly rightWithout: number;
  readonly wrongWithout: number;
}

const ratio = (part: number, whole: number) => (whole === 0 ? null : part / whole);

/** @param without, withContext exact match of each item, 0 or 1; at least one item */
export function ratesOf(without: readonly number[], withContext: readonly number[]): Rates {
  const count = (wasRight: boolean, isRight: boolean) =>
    without.filter((value, i) => (value === 1) === wasRight && (withContext[i] === 1) === isRight).length;
  const all = without.length;
  const rightWithout = without.filter((value) => value === 1).length;
  const wrongWithout = all - rightWithout;
  const both = count(true, true);
  return {
    resilience: ratio(both, rightWithout),
    boost: ratio(count(false, true), wrongWithout),
    bothOfAll: both / all,
    noDegradation: 1 - count(true, false) / all,
    rightWithout,
    wrongWithout,
  };
}
