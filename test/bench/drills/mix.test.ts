/** The traffic of a soak, against a gateway that answers wrongly. */
import type { ServerResponse } from 'node:http';
import { describe, expect, test } from 'vitest';
import { type ChoicesReference, Editor, sendChoices } from '../../../bench/drills/mix.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';
import { BODY, REFERENCE } from '../../support/drill-scene.ts';
import { events, gateway, json, refuse } from '../../support/fake-http.ts';

describe('several choices', () => {
  const expected: ChoicesReference = {
    body: { ...BODY, n: 2 },
    tokenIds: [
      [1, 2],
      [5, 6],
    ],
    withoutContext: [
      [3, 4],
      [7, 8],
    ],
  };
  const choice = (index: number, ...token_ids: number[]) => ({ index, token_ids });
  const usage = { prompt_tokens: 1, completion_tokens: 4 };

  test.each<[string, object, Partial<StreamRecord>]>([
    ['that are right', { choices: [choice(1, 5, 6), choice(0, 1, 2)], usage }, { outcome: 'ok', lost: 0, doubled: 0 }],
    [
      'that are right without context',
      { choices: [choice(0, 3, 4), choice(1, 7, 8)], usage, rag: { degraded: 'store' } },
      { outcome: 'ok', lost: 0, doubled: 0, degraded: true },
    ],
    [
      'that are swapped',
      { choices: [choice(0, 5, 6), choice(1, 1, 2)], usage },
      { outcome: 'ok', lost: 4, doubled: 4 },
    ],
    [
      'of which one is missing',
      { choices: [choice(0, 1, 2)], usage: { ...usage, completion_tokens: 2 } },
      { lost: 2, doubled: 0 },
    ],
    [
      'that usage counts wrongly',
      { choices: [choice(0, 1, 2), choice(1, 5, 6)], usage: { ...usage, completion_tokens: 2 } },
      { outcome: 'failed', code: 'wrong_usage' },
    ],
  ])('an answer with choices %s is judged by its tokens and its usage', async (_, answer, record) => {
    const url = await gateway((_, __, response) => json(response, answer));
    expect(await sendChoices(url, expected, 0)).toMatchObject(record);
  });

  test('a refused request for choices has failed with the code of the refusal', async () => {
    const url = await gateway((_, __, response) => refuse(response, 'worker_lost'));
    expect(await sendChoices(url, expected, 0)).toMatchObject({ outcome: 'failed', code: 'worker_lost' });
  });
});

describe('keystrokes of a session', () => {
  /** The gateway supersedes each keystroke when the next one arrives; `last` answers the last one. */
  const type = async (last: (response: ServerResponse) => void) => {
    const sessions: unknown[] = [];
    let waiting: ServerResponse | undefined;
    const url = await gateway((body, _, response) => {
      if (waiting) refuse(waiting, 'superseded');
      waiting = response;
      if (sessions.push((body as { session: unknown }).session) === 3) last(response);
    });
    const records = await new Editor(url, 'editor', REFERENCE, 0).type();
    expect(sessions).toEqual(['editor', 'editor', 'editor']);
    return records.map(({ outcome, code }) => code ?? outcome);
  };

  test('a keystroke may be superseded by the next one', async () => {
    // Requests may overtake each other on their way.
    const outcomes = await type((response) => events(response, [1, 2]));
    expect(outcomes.toSorted()).toEqual(['left', 'left', 'ok']);
  });

  test('the keystrokes of a burst must not all be superseded', async () => {
    expect(await type((response) => refuse(response, 'superseded'))).toEqual(['left', 'left', 'superseded']);
  });
});
