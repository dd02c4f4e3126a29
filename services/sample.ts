/**
 * The sample that people see first: one cursor in the repository that ships. README.md, `llavacode up`, the demo and
 * the operator page show it (page/, in a browser: this file imports nothing). It was chosen from what `llavacode demo
 * --search` lists (demo-search.ts), as one where the model that ships completes the line with context and not without.
 */

/** The name of the repository in requests: that of its folder. */
export const SAMPLE_REPO = 'shop';

/** A missing key of a dictionary raises KeyError. Without context the model that ships catches ValueError. */
export const SAMPLE = {
  path: 'shop/pricing.py',
  /** The eight lines before the cursor, which stands where a line begins. */
  before: `            discounts=tuple(applied),
            shipping=self.shipping_cost(cart, customer.address, reduced),
            tax=self.tax(cart, customer.address, reduced),
        )

    def find_coupon(self, code: str) -> PercentageCoupon:
        try:
            return self._coupons[code.upper()]
`,
  /** The cursor's line, as it stands in the file. */
  rest: '        except KeyError:',
} as const;

/** What `llavacode demo --search` counted on the cursors of the sample repository, with the model that ships. */
export const SEARCHED = {
  cursors: 3002,
  right: { off: 60, text: 61, compressed: 66 },
  /** Cursors where the answer with context is right and the one without is not, and the other way round. */
  gained: { text: 21, compressed: 9 },
  lost: { text: 20, compressed: 3 },
} as const;

/** The body of a request that completes the sample's line, without `rag`. */
export const SAMPLE_BODY = { prompt: SAMPLE.before, max_tokens: 24, temperature: 0, stop: ['\n'] };
