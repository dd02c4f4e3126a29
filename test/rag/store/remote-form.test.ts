import fc from 'fast-check';
import { expect, test } from 'vitest';
import { remoteForm } from '../../../services/lib/rag/store/remote-form.ts';

test.each([
  'https://github.com/acme/shop',
  'https://github.com/acme/shop.git',
  'https://GitHub.com/acme/shop/',
  'http://github.com:8080/acme/shop.git',
  'https://user:secret@github.com/acme/shop.git',
  'git@github.com:acme/shop.git',
  'github.com:acme/shop',
  'ssh://git@github.com:22/acme/shop.git',
  'git://github.com/acme/shop.git ',
  'git+ssh://git@github.com/acme/shop',
])('%s is the remote github.com/acme/shop', (url) => {
  expect(remoteForm(url)).toBe('github.com/acme/shop');
});

test.each([
  '',
  'shop',
  '/srv/git/shop.git',
  '../shop',
  'file:///srv/shop.git',
  'C:\\src\\shop',
  'C:/src/shop',
  'https://github.com/',
])('%j is not a remote URL of another machine', (url) => {
  expect(remoteForm(url)).toBeUndefined();
});

test('the form holds no user and no password, and gives itself once more, whatever the URL holds', () => {
  const word = fc.stringMatching(/^[a-zA-Z0-9äß_-]{1,12}$/);
  const parts = fc.record({ user: word, password: word, host: fc.domain(), path: fc.array(word, { minLength: 1 }) });
  fc.assert(
    fc.property(parts, ({ user, password, host, path }) => {
      const form = remoteForm(`https://${user}1x:${password}2y@${host}/${path.join('/')}.git`);
      expect(form).toBe(`${host.toLowerCase()}/${path.join('/')}`);
      expect(remoteForm(`https://${encodeURI(form!)}`)).toBe(form);
      expect(remoteForm(`git@${host}:${path.join('/')}.git`)).toBe(form);
    }),
  );
  fc.assert(fc.property(fc.string(), (text) => void remoteForm(text)));
});
