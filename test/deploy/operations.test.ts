import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { OPERATIONS, rendered } from '../support/operations.ts';

it('deploy/OPERATIONS.md says what the code says (npx vitest run test/deploy -u renders it anew)', async () => {
  await expect(rendered()).toMatchFileSnapshot(OPERATIONS);
});

it("every variable of OpenTelemetry that the code names is in the page's table", async () => {
  const sources = await Promise.all(
    ['tracing.ts', 'otlp.ts'].map((file) => readFile(join(PACKAGE_ROOT, 'services/lib/process', file), 'utf8')),
  );
  const read = new Set(sources.join().match(/\bOTEL_[A-Z_]+[A-Z]\b/g));
  expect(read.size).toBeGreaterThan(10);
  const page = await readFile(OPERATIONS, 'utf8');
  expect([...read].filter((name) => !page.includes(`\`${name}`))).toEqual([]);
});
