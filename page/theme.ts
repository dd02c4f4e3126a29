/** Light or dark: as the browser says, until the reader has chosen. The choice stays in this browser. */

export type Theme = 'light' | 'dark';

const KEY = 'llavacode-theme';

const chosen = (): Theme | undefined => {
  const stored = localStorage.getItem(KEY);
  return stored === 'light' || stored === 'dark' ? stored : undefined;
};

export const theme = (): Theme => chosen() ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');

/** Has the document show the theme that was chosen, if any. */
export function applyTheme(): void {
  const wanted = chosen();
  if (wanted === undefined) delete document.documentElement.dataset['theme'];
  else document.documentElement.dataset['theme'] = wanted;
}

export function chooseTheme(wanted: Theme): void {
  localStorage.setItem(KEY, wanted);
  applyTheme();
}
