/**
 * The sample that people see first: one cursor in the repository that ships. README.md, `llavacode up` and the demo
 * show it. `llavacode demo --search` found it: demo-search.ts says how, and demo.ts says how rare such cursors are.
 */
import { join } from 'node:path';
import { PACKAGE_ROOT } from './lib/process/package-root.ts';

export const SAMPLE_REPOSITORY = join(PACKAGE_ROOT, 'examples', 'shop');

export const SAMPLE = {
  path: 'tests/test_checkout.py',
  /** The text before the cursor: the end of what is in the file up to there. */
  before: '',
  /** The rest of the cursor's line, as it stands in the file. */
  rest: 'unittest.TestCase):',
};

/** The body of a request that completes at the sample's cursor, without `rag`. */
export const SAMPLE_BODY = { prompt: SAMPLE.before, max_tokens: 24, temperature: 0, stop: ['\n'] };
