import pytest

from geomim.addresses import full, keep, plain, split_list
from geomim.errors import BandError, MissingExtraError

SECRET = "S3cr3t%2Fof+mine="
KEPT = "https://host/a,b/x_2020.tif"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (f"{KEPT}?sig={SECRET}", KEPT),
        (f"{KEPT}?sv=2022&st=2020-01-01&se=2021-01-01&sr=b&sp=r&sig={SECRET}", KEPT),
        (f"{KEPT}?X-Amz-Algorithm=A&X-Amz-Credential=C%2F1&X-Amz-Expires=60&X-Amz-Signature={SECRET}", KEPT),
        (f"{KEPT}?AWSAccessKeyId=C&Expires=160&Signature={SECRET}", KEPT),
        (f"{KEPT}?Policy={SECRET}&Signature=s&Key-Pair-Id=K", KEPT),
        (f"{KEPT}?access_token={SECRET}", KEPT),
        (f"{KEPT}?authkey={SECRET}&connectid={SECRET}&app_code={SECRET}&SESSIONID={SECRET}", KEPT),
        (f"{KEPT}?version=3&api_key={SECRET}&layer=a", f"{KEPT}?version=3&layer=a"),
        (f"https://tiles/get?key={SECRET}&x=1", "https://tiles/get?x=1"),
        ("https://tiles/get?key=folder/x.tif", "https://tiles/get?key=folder/x.tif"),
        ("https://host/x?st=2&se=3&start=1", "https://host/x?st=2&se=3&start=1"),  # nothing signs: they identify
        (f"https://me:{SECRET}@host/x.tif", "https://host/x.tif"),
        (f"https://{SECRET}@host/x.tif", "https://host/x.tif"),
        (f"s3://key:{SECRET.replace('/', '')}@bucket/x.tif", "s3://bucket/x.tif"),
        ("abfs://container@account.dfs/x.tif", "abfs://container@account.dfs/x.tif"),
        (f"/vsicurl/{KEPT}?sig={SECRET}", f"/vsicurl/{KEPT}"),
        (f"/vsizip/{{/vsicurl/https://h/a.zip?sig={SECRET}}}/in.tif", "/vsizip/{/vsicurl/https://h/a.zip}/in.tif"),
        (
            f"/vsicurl?header.Authorization=Bearer%20{SECRET}&url=https%3A%2F%2Fh%2Fx.tif%3Fsig%3D{SECRET}",
            "/vsicurl?url=https%3A%2F%2Fh%2Fx.tif",
        ),
        (f"https://h/x.zarr?token={SECRET}#time=1", "https://h/x.zarr#time=1"),
        (f"NAME={KEPT}?sig={SECRET}", f"NAME={KEPT}"),
        ("folder/is?sig=mine.tif", "folder/is?sig=mine.tif"),
    ],
)
def test_what_signs_goes_and_what_identifies_stays(given, stored):
    assert plain(given) == plain(plain(given)) == stored
    assert keep(given) == stored
    assert full(stored.removeprefix("NAME=")) == given.removeprefix("NAME=")


def test_sentences_hold_no_secret():
    said = f"'{KEPT}?sig={SECRET}' cannot be opened (HTTP 403: https://u:{SECRET}@h/x?a=1); what now?"
    for kind in (BandError, MissingExtraError):
        assert str(kind(said)) == f"'{KEPT}' cannot be opened (HTTP 403: https://h/x?a=1); what now?"


def test_commas_in_addresses_do_not_split_them():
    assert split_list("a.tif,b") == ["a.tif", "b"]
    one, two = "https://h/a,b.tif?sig=x,y", "/vsicurl/https://h/c,d.tif"
    assert split_list(f"a,{one},{two},N={one},/data") == ["a", one, two, f"N={one}", "/data"]
