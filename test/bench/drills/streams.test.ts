import { describe, expect, test } from 'vitest';
import { sendStream } from '../../../bench/drills/streams.ts';
import { REFERENCE } from '../../support/drill-scene.ts';
import { events, gateway } from '../../support/fake-http.ts';

describe('a stream from an index that changes', () => {
  const byVersion = new Map([
    ['a', [1, 2]],
    ['b', [1, 9]],
  ]);
  test.each([
    ['b', [1, 9], { lost: 0, doubled: 0 }],
    ['a', [1, 9], { lost: 1, doubled: 1 }],
    ['made by nobody', [1, 2], { lost: 0, doubled: 2 }],
  ])(
    'the tokens of a stream are compared with those of its index version (%s, %j)',
    async (version, tokenIds, found) => {
      const url = await gateway((_, __, response) => events(response, tokenIds, { index_version: version }));
      expect(await sendStream({ url }, { ...REFERENCE, byVersion }, 0)).toMatchObject({ outcome: 'ok', ...found });
    },
  );
});
