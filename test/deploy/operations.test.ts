import { expect, it } from 'vitest';
import { OPERATIONS, rendered } from '../support/operations.ts';

it('deploy/OPERATIONS.md says what the code says (npx vitest run test/deploy -u renders it anew)', async () => {
  await expect(rendered()).toMatchFileSnapshot(OPERATIONS);
});
