import type { ServerResponse } from 'node:http';
import { describe, expect, test } from 'vitest';
import { Editor } from '../../../bench/drills/editor.ts';
import { REFERENCE } from '../../support/drill-scene.ts';
import { events, gateway, refuse } from '../../support/fake-http.ts';

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
    const records = await new Editor({ url }, 'editor', REFERENCE, 0).type();
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
