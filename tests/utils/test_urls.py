import pytest

from danet.utils.urls import mask_url, mask_urls, mask_values


@pytest.mark.parametrize(
    "url, masked",
    [
        ("rtsp://user:s3cret@127.0.0.1:554/x", "rtsp://***@127.0.0.1:554/x"),
        ("rtsp://s3cret@host/x", "rtsp://***@host/x"),
        ("rtsp://user:@host", "rtsp://***@host"),
        ("rtsp://user:s3@cret@host/x", "rtsp://***@host/x"),
        ("rtsp://user:s3/c?r#et@host:554/x", "rtsp://***@host:554/x"),
        ("rtsp://user:s3'c ret@host/x", "rtsp://***@host/x"),
        ("RTSP://User:S3cret@Host/x", "RTSP://***@Host/x"),
        ("http://h/cam.mjpeg?token=s3cret&channel=2", "http://h/cam.mjpeg?token=***&channel=2"),
        ("http://h/cam?user=a&pwd=s3cret", "http://h/cam?user=***&pwd=***"),
        ("http://h/x#access_token=s3cret", "http://h/x#access_token=***"),
        ("https://bucket.s3/x.mp4?X-Amz-Signature=s3cret", "https://bucket.s3/x.mp4?X-Amz-Signature=***"),
        ("srt://h:9000?passphrase=s3cret&mode=caller", "srt://h:9000?passphrase=***&mode=***"),
        ("rtsp://h/user=admin_password=s3cret_channel=1.sdp?real_stream", "rtsp://h/user=***?real_stream"),
    ],
)
def test_mask_url_hides_passwords_and_tokens(url, masked):
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    "text", ["rtsp://host:554/live/1", "rtsp://[fe80::1]:554/x", "rtsp://h:554/a@b", "a@b.mp4", "0"]
)
def test_mask_url_keeps_what_is_no_secret(text):
    assert mask_url(text) == mask_urls(text) == text


def test_mask_urls_masks_every_url_of_a_text():
    text = "'rtsp://a:s3cret@h/x': lost; see http://h/y?key=s3cret."
    assert mask_urls(text) == "'rtsp://***@h/x': lost; see http://h/y?key=***."


def test_mask_values_masks_nested_options():
    options = {"sources": ["rtsp://a:s3cret@h/x", "clip.mp4"], "nested": {"pair": ("http://a:b@h", 3)}, "none": None}
    assert mask_values(options) == {
        "sources": ["rtsp://***@h/x", "clip.mp4"],
        "nested": {"pair": ["http://***@h", 3]},
        "none": None,
    }
